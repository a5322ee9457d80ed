"""The metrics in the host's validation loop, by the very lines of docs/en/metrics.md."""
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.datasets import LoveDADataset
from PIL import Image
from small_run import ROOT, SmallRun, train

from mmsynth.guidance import SegmentorCritic
from mmsynth.utils import read_checkpoint

pytestmark = pytest.mark.slow

# what a LoveDA config has, over the small run's: another class count
LOVEDA = """
classes = ('background', 'building', 'road', 'water', 'barren', 'forest', 'agricultural')
crop_size = (16, 16)
model = dict(
    label_codec=dict(num_classes=7), network=dict(mask_channels=7), text_encoder=dict(classes=classes))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='LoveDADataset',
        data_root='data/loveDA',
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap', num_classes=7),
            dict(type='mmsynth.BuildPrompt', classes=classes),
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
"""
MEASURES = {'consistency/mIoU', 'consistency/aAcc', 'consistency/mAcc', 'frechet/distance', 'frechet/images',
            'frechet/real_images', 'classes/before.field', 'classes/before.unlabelled'}


@pytest.fixture(scope='module')
def judge(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the critic's architecture that are not the critic's."""
    state = read_checkpoint(small_run.critic)
    path = tmp_path_factory.mktemp('judge') / 'judge.pth'
    torch.save({name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()}, path)
    return path


def page() -> list[str]:
    """The page's Python: of the demo, of LoveDA."""
    return re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'en' / 'metrics.md').read_text(), re.S)


def write_config(small_run: SmallRun, judge: Path, folder: Path, extra: str = '', base: str = '') -> Path:
    """The page's lines as they stand, in a folder where the small run's files lie as the demo leaves its own."""
    demo = folder / 'work_dirs' / 'demo_todsynth'
    (demo / 'seed_0' / 'configs').mkdir(parents=True)
    (demo / 'seed_0' / 'configs' / 'generator.py').write_text(
        f'_base_ = {str(small_run.config_file)!r}\nval_cfg = None\ntest_cfg = None\n{base}')
    (demo / 'seed_0' / 'configs' / 'judge.py').write_text(f'_base_ = {str(small_run.critic_config_file)!r}\n')
    (demo / 'seed_0' / 'judge').mkdir()
    (demo / 'seed_0' / 'judge' / 'iter_550.pth').symlink_to(judge)
    for kind, own in (('img_dir', 'images'), ('ann_dir', 'masks')):
        (demo / 'data' / kind).mkdir(parents=True)
        (demo / 'data' / kind / 'val').symlink_to(small_run.data / own)
    (demo / 'data' / 'meta.json').symlink_to(small_run.data / 'meta.json')
    path = folder / 'generator.py'
    path.write_text(f'{page()[0]}\n{extra}\n')
    return path


def validate(config: Path, work_dir: Path, **overrides: Any) -> list[dict[str, float]]:
    """Train for two iterations with a validation after each, from the config's folder; what each gave."""
    here = os.getcwd()
    os.chdir(config.parent)
    try:
        train(config, work_dir, {'train_cfg.val_interval': 1} | {
            key.replace('__', '.'): value for key, value in overrides.items()})
    finally:
        os.chdir(here)
    log = next(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if 'consistency/mIoU' in line]


def test_a_generator_is_measured_while_it_trains(small_run: SmallRun, judge: Path, tmp_path: Path) -> None:
    config = write_config(small_run, judge, tmp_path)
    first, second = validate(config, tmp_path / 'work')
    assert MEASURES <= first.keys() and first['frechet/real_images'] == 4
    assert 0 <= first['consistency/mIoU'] <= 100 and first['frechet/distance'] > 0
    assert first['classes/before.field'] == second['classes/before.field']
    assert list((tmp_path / 'work').glob('best_consistency_mIoU_iter_*.pth'))
    one_by_one = validate(config, tmp_path / 'again', val_dataloader__batch_size=1)
    for name in MEASURES:  # the batches change rounding only; a pixel between two classes may fall to the other
        assert one_by_one[-1][name] == pytest.approx(second[name], rel=1e-2, abs=0.5), name


def test_the_critic_may_not_judge_unsaid(small_run: SmallRun, tmp_path: Path) -> None:
    config = write_config(small_run, small_run.critic, tmp_path)
    with pytest.raises(ValueError, match=r'is the critic of this config \(`synthesis.guidance`\)'):
        validate(config, tmp_path / 'work')


def test_the_results_say_that_the_critic_judged(small_run: SmallRun, tmp_path: Path) -> None:
    config = write_config(small_run, small_run.critic, tmp_path,
                          "val_evaluator = dict(type='mmsynth.MaskConsistency', judge=judge, guidance=guidance, "
                          'allow_critic=True)')
    assert all(said['consistency/judge_is_critic'] == 1 for said in validate(config, tmp_path / 'work'))


def test_the_lines_for_loveda(small_run: SmallRun, tmp_path: Path) -> None:
    """Masks as mmseg's converter writes them: 1 … 7, and 0 for no data."""
    for kind in ('img_dir', 'ann_dir'):
        (tmp_path / 'data' / 'loveDA' / kind / 'val').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ('0.png', '1.png', '2.png'):
        mask = rng.integers(0, 8, (20, 24), dtype=np.uint8)
        image = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / 'data' / 'loveDA' / 'img_dir' / 'val' / name)
        Image.fromarray(mask).save(tmp_path / 'data' / 'loveDA' / 'ann_dir' / 'val' / name)
    classes = LoveDADataset.METAINFO['classes']
    judge_config = Config.fromfile(small_run.critic_config_file)
    judge_config.model.decode_head.num_classes = len(classes)
    judge_config.dump(tmp_path / 'judge.py')
    torch.save(SegmentorCritic(str(tmp_path / 'judge.py')).segmentor.state_dict(), tmp_path / 'judge.pth')
    config = write_config(small_run, tmp_path / 'judge.pth', tmp_path, page()[1], LOVEDA)
    (tmp_path / 'work_dirs/demo_todsynth/seed_0/configs/judge.py').write_text(f"_base_ = '{tmp_path}/judge.py'\n")
    found = validate(config, tmp_path / 'work', val_dataloader__num_workers=0)[-1]
    assert found['frechet/real_images'] == 3 and 0 <= found['consistency/mIoU'] <= 100
    assert sum(found[f'classes/before.{name}'] for name in classes) == pytest.approx(100)
    assert found['classes/before.unlabelled'] > 0
