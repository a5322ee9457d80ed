"""The examples of README.md and docs/en, run as they stand there, on whichever page: mixing, guiding, and Python."""
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmseg.datasets import LoveDADataset
from page_examples import Block, examples
from PIL import Image
from small_run import SmallRun, train
from tiny_backbone import write_tiny_sd3

from mmsynth.apis import synthesize
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


@pytest.fixture(scope='module', params=examples("_base_ = 'pspnet_loveda.py'"), ids=str)
def config(root: Path, request: pytest.FixtureRequest) -> Path:
    """The page's lines; only where the pool lies is filled in."""
    assert "'data/loveda_pool'" in request.param.text
    path = root / 'mixed.py'
    path.write_text(request.param.text.replace("'data/loveda_pool'", repr(str(root / 'pool'))))
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
    """What PoolDataset is for; and what a user without mmsynth must do, by the same page."""
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


# ---- files whose names the examples have, in a folder


@pytest.fixture
def folder(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the small run's configs and weights by the names that the pages give them."""
    for names, path in {
            ('generator.py', 'my_generator.py'): small_run.config_file,
            ('generator.pth', 'work_dirs/my_generator/iter_40000.pth'): small_run.generator,
            ('critic.py', 'my_segmentor.py', 'judge.py'): small_run.critic_config_file,
            ('critic.pth', 'work_dirs/my_segmentor/iter_40000.pth'): small_run.critic,
            ('runtime.py', ): small_run.folder / 'runtime.py'}.items():
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(block: Block, **replaced: tuple[str, str]) -> str:
    """Write the file that a block is, with the parts replaced that tiny data need; its name."""
    text = block.text
    for old, new in replaced.values():
        assert old in text, f'{block} no longer has {old}'
        text = text.replace(old, new)
    Path(block.file).write_text(text)
    return block.file


def guided(pool: Pool) -> bool:
    """Whether each sample was corrected at its guided steps."""
    return len(pool) > 0 and all(pool.load_trace(record) for record in pool.records)


@pytest.mark.parametrize('block', examples('# my_guided.py'), ids=str)
def test_your_segmentor_guides(block: Block, folder: Path) -> None:
    assert guided(synthesize(write(block), 'work_dirs/my_generator/iter_40000.pth', 'pool', limit=1))


@pytest.mark.parametrize('block', examples('# my_torch_critic.py'), ids=str)
def test_any_torch_module_guides(block: Block, folder: Path) -> None:
    """A convolution stands for the U-Net of a package that is not installed."""
    torch.save(torch.nn.Conv2d(3, 3, 1).state_dict(), 'unet.pth')
    name = write(
        block, classes=('num_classes=7', 'num_classes=3'),
        unet=("type='segmentation_models_pytorch.Unet', encoder_weights=None, classes=7",
              "type='torch.nn.Conv2d', in_channels=3, out_channels=3, kernel_size=1"))
    assert guided(synthesize(name, 'work_dirs/my_generator/iter_40000.pth', 'pool', limit=1))


@pytest.mark.parametrize('block', examples('# my_controlnet.py'), ids=str)
def test_a_controlnet_generates(block: Block, folder: Path) -> None:
    write_tiny_sd3(folder / 'sd3', latent_channels=4, sample_size=16)
    transformer = SD3Transformer2DModel.from_pretrained(folder / 'sd3', subfolder='transformer')
    SD3ControlNetModel.from_transformer(transformer, num_layers=1, num_extra_conditioning_channels=0).save_pretrained(
        folder / 'CONTROLNET')
    for guide in examples('# my_guided.py'):
        write(guide)
    name = write(block, backbone=('stable-diffusion-v1-5/stable-diffusion-v1-5', 'sd3'))
    assert guided(synthesize(name, None, 'pool', limit=1))


@pytest.mark.parametrize('block', examples('# my_online.py'), ids=str)
def test_synthesis_while_it_trains(block: Block, folder: Path) -> None:
    """Sooner, and fewer at a time: the training has two iterations."""
    name = write(block, rounds=('begin=2000, interval=2000, num_per_round=64', 'begin=1, interval=1, num_per_round=2'))
    assert train(folder / name, folder / 'work_dirs' / 'my_online').iter == 2
    assert guided(Pool.open('work_dirs/my_online/pool'))


@pytest.mark.parametrize('block', examples('from mmsynth.apis import generate'), ids=str)
def test_single_images_from_python(block: Block, folder: Path) -> None:
    found = dict(masks=[np.zeros((16, 16), np.uint8)])
    exec(block.text.replace("'cuda'", "'cpu'"), found)
    assert [image.shape for image in found['images']] == [(16, 16, 3)]


@pytest.mark.parametrize('block', examples('from mmsynth import ClassLossFilter'), ids=str)
def test_the_python_example_runs(block: Block, small_run: SmallRun, folder: Path) -> None:
    """Only the device is another; the judge is the critic with other weights."""
    state = read_checkpoint(small_run.critic)
    torch.save({name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()},
               folder / 'judge.pth')
    exec(block.text.replace("'cuda'", "'cpu'"), {})
    pool = Pool.open('pool')
    assert len(pool) == 4 and all(record.filter is not None for record in pool.records)
    assert 'judge' in (pool.root / 'report.html').read_text()
