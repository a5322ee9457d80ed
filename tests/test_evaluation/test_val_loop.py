"""The metrics in the host's validation loop, by the very lines of docs/en/metrics.md, on the small run."""
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import ROOT, SmallRun, train

from mmsynth.utils import read_checkpoint

MEASURES = {'consistency/mIoU', 'consistency/aAcc', 'consistency/mAcc', 'frechet/distance', 'frechet/images',
            'frechet/real_images', 'classes/before.field', 'classes/before.unlabelled'}


@pytest.fixture(scope='module')
def judge(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the critic's architecture that are not the critic's."""
    state = read_checkpoint(small_run.critic)
    path = tmp_path_factory.mktemp('judge') / 'judge.pth'
    torch.save({name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()}, path)
    return path


def write_config(small_run: SmallRun, judge: Path, folder: Path, extra: str = '') -> Path:
    """The small run's config with the lines of the docs, pointed at its files."""
    lines = re.search(r'```python\n(.*?)```', (ROOT / 'docs' / 'en' / 'metrics.md').read_text(), re.S).group(1)
    for there, here in (('work_dirs/demo/configs/judge.py', small_run.critic_config_file),
                        ('work_dirs/demo/judge/iter_600.pth', judge), ('work_dirs/demo/data', small_run.data),
                        ('img_dir/val', 'images'), ('ann_dir/val', 'masks'), ('val_interval=200', 'val_interval=1')):
        assert there in lines
        lines = lines.replace(there, str(here))
    path = folder / 'generator.py'
    path.write_text(f'_base_ = {str(small_run.config_file)!r}\n{lines}\n{extra}\n')
    return path


def validate(config: Path, work_dir: Path, **overrides: Any) -> list[dict[str, float]]:
    """Train for two iterations with a validation after each; what each said."""
    train(config, work_dir, {key.replace('__', '.'): value for key, value in overrides.items()})
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
        train(config, tmp_path / 'work')


def test_the_results_say_that_the_critic_judged(small_run: SmallRun, tmp_path: Path) -> None:
    config = write_config(small_run, small_run.critic, tmp_path,
                          "val_evaluator = dict(type='mmsynth.MaskConsistency', judge=judge, allow_critic=True)")
    assert all(said['consistency/judge_is_critic'] == 1 for said in validate(config, tmp_path / 'work'))
