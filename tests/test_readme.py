"""The README's examples, run as they stand there: mixing, on LoveDA with the pipeline of mmseg, and Python."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmseg.datasets import LoveDADataset
from PIL import Image
from small_run import ROOT, SmallRun, train

from mmsynth.pool import Pool
from mmsynth.utils import read_checkpoint

CLASSES, PALETTE = LoveDADataset.METAINFO['classes'], LoveDADataset.METAINFO['palette']
BASE = """
default_scope = 'mmseg'
norm_cfg = dict(type='BN', requires_grad=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='LoveDADataset', data_root=ROOT + '/loveda', pipeline=train_pipeline,
                 data_prefix=dict(img_path='img', seg_map_path='ann')))
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, seg_pad_val=255, size=(16, 16)),
    backbone=dict(
        type='ResNetV1c', depth=18, base_channels=4, stem_channels=4, strides=(1, 1, 1, 1), norm_cfg=norm_cfg),
    decode_head=dict(type='FCNHead', in_channels=32, in_index=3, channels=8, num_convs=1, num_classes=7,
                     norm_cfg=norm_cfg, align_corners=False, loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
log_processor = dict(by_epoch=False)
log_level = 'WARNING'
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real image whose file says 1 … 7, and a pool of the same mask that says 0 … 6; a corner is unlabelled."""
    root = tmp_path_factory.mktemp('readme')
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16) % 7
    mask[:2, :2] = 255
    for folder, pixels in (('img', np.zeros((16, 16, 3), np.uint8)), ('ann', np.where(mask == 255, 0, mask + 1))):
        (root / 'loveda' / folder).mkdir(parents=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / 'loveda' / folder / 'a.png')
    with Pool.create(root / 'pool', {}, CLASSES, PALETTE) as pool:
        pool.add('a', np.zeros((16, 16, 3), np.uint8), mask, source_mask='m', prompt='', seed=0,
                 generator=dict(type='x', config_sha256='', weights_sha256=None))
    (root / 'pspnet_loveda.py').write_text(f'ROOT = {str(root)!r}' + BASE)
    return root


@pytest.fixture(scope='module')
def config(root: Path) -> Path:
    """The README's lines; only where the pool lies is filled in."""
    text = (ROOT / 'README.md').read_text()
    lines = re.search(r'```python\n(_base_ = .*?ConcatDataset.*?)```', text, re.S).group(1)
    assert "'data/loveda_pool'" in lines
    path = root / 'mixed.py'
    path.write_text(lines.replace("'data/loveda_pool'", repr(str(root / 'pool'))))
    return path


def labels(dataset: object) -> list[list[int]]:
    return [np.unique(dataset[index]['data_samples'].gt_sem_seg.data.numpy()).tolist()
            for index in range(len(dataset))]


def test_real_and_synthetic_labels_mean_the_same(config: Path) -> None:
    dataset = DATASETS.build(Config.fromfile(config).train_dataloader.dataset)
    assert labels(dataset) == [[0, 1, 2, 3, 4, 5, 6, 255]] * 2


def test_the_example_trains(config: Path, root: Path) -> None:
    assert train(config, root / 'work').iter == 2


def test_a_plain_data_set_would_be_refused_or_mislabelled(root: Path) -> None:
    """What PoolDataset is for; and what the README says a user without mmsynth must do."""
    base = Config.fromfile(root / 'pspnet_loveda.py')
    plain = dict(type='BaseSegDataset', data_root=str(root / 'pool'), img_suffix='.png',
                 data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir'), pipeline=base.train_pipeline,
                 metainfo=dict(classes=CLASSES, palette=PALETTE))
    pair = dict(type='ConcatDataset', datasets=[base.train_dataloader.dataset, plain])
    with pytest.raises(ValueError, match='meta information'):
        DATASETS.build(pair)
    reduced = DATASETS.build(plain | dict(reduce_zero_label=True))
    assert labels(reduced) == [[0, 1, 2, 3, 4, 5, 255]]  # every class by one too low
    own = [base.train_pipeline[0], dict(type='LoadAnnotations', reduce_zero_label=False), *base.train_pipeline[2:]]
    both = DATASETS.build(pair | dict(ignore_keys=['reduce_zero_label'], datasets=[
        base.train_dataloader.dataset, plain | dict(pipeline=own)]))
    assert labels(both) == [[0, 1, 2, 3, 4, 5, 6, 255]] * 2


def test_single_images_from_python(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / 'README.md').read_text()
    [lines] = re.findall(r'```python\n(from mmsynth.apis import generate.*?)```', text, re.S)
    for name, path in {'generator.py': small_run.config_file, 'generator.pth': small_run.generator,
                       'critic.py': small_run.critic_config_file, 'critic.pth': small_run.critic,
                       'runtime.py': small_run.folder / 'runtime.py'}.items():
        (tmp_path / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    found = dict(masks=[np.zeros((16, 16), np.uint8)])
    exec(lines.replace("'cuda'", "'cpu'"), found)
    assert [image.shape for image in found['images']] == [(16, 16, 3)]


def test_the_python_example_runs(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the device is another; the judge is the critic with other weights."""
    [lines] = re.findall(r'```python\n(from mmsynth import .*?)```', (ROOT / 'README.md').read_text(), re.S)
    for name, path in {'generator.py': small_run.config_file, 'generator.pth': small_run.generator,
                       'critic.py': small_run.critic_config_file, 'critic.pth': small_run.critic,
                       'judge.py': small_run.critic_config_file, 'runtime.py': small_run.folder / 'runtime.py'}.items():
        (tmp_path / name).symlink_to(path)
    state = read_checkpoint(small_run.critic)
    torch.save({name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()},
               tmp_path / 'judge.pth')
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("'cuda'", "'cpu'"), {})
    pool = Pool.open('pool')
    assert len(pool) == 4 and all(record.filter is not None for record in pool.records)
    assert 'judge' in (pool.root / 'report.html').read_text()
