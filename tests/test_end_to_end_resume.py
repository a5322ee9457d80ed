"""A resumed training of a generator goes on as the unbroken one does: learning rates and losses."""
import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from small_run import ROOT, SmallRun, train

pytestmark = pytest.mark.process

SCHEDULE = ROOT / 'configs' / '_base_' / 'schedules' / 'todsynth_20k.py'


def run(small_run: SmallRun, work_dir: Path, **overrides: Any) -> dict[int, tuple[float, float]]:
    """Train by the shipped recipe's schedulers and hooks, shortened; learning rate and loss of each iteration."""
    recipe = Config.fromfile(SCHEDULE)
    checkpoint = recipe.default_hooks.checkpoint | dict(interval=4)
    settings = {
        'train_cfg.max_iters': 8, 'default_hooks.checkpoint': checkpoint, 'default_hooks.logger.interval': 1,
        'param_scheduler': [
            dict(type='LinearLR', start_factor=1e-3, begin=0, end=3, by_epoch=False),
            dict(type='CosineAnnealingLR', T_max=8, eta_min=0.0, begin=3, end=11, by_epoch=False)],
        'custom_hooks': [dict(type='mmsynth.FitLatentCodecHook', num_images=8), dict(type='mmsynth.ResumeCheckHook')],
        'model.prompt_dropout': 0.3} | overrides
    train(small_run.config_file, work_dir, settings)
    lines = [json.loads(line) for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
             for line in log.read_text().splitlines()]
    return {line['step']: (line['lr'], line['loss']) for line in lines}


@pytest.mark.parametrize('changes', [
    {}, {'model.trainable.mask': 'lora', 'model.lora': dict(rank=2, alpha=200, dropout=0.5)}], ids=['full', 'lora'])
def test_learning_rates_and_losses_are_those_of_the_unbroken_run(small_run: SmallRun, tmp_path: Path,
                                                                 changes: dict[str, Any]) -> None:
    unbroken = run(small_run, tmp_path / 'unbroken', **changes)
    resumed = run(small_run, tmp_path / 'resumed', load_from=str(tmp_path / 'unbroken' / 'iter_4.pth'), resume=True,
                  **changes)
    assert sorted(unbroken) == list(range(1, 9)) and sorted(resumed) == [5, 6, 7, 8]
    for step, (rate, loss) in resumed.items():
        assert rate == pytest.approx(unbroken[step][0], rel=1e-6)
        assert loss == pytest.approx(unbroken[step][1], rel=1e-4)


def test_a_checkpoint_without_optimizer_is_not_resumed(small_run: SmallRun, tmp_path: Path) -> None:
    """The host would go on, at the warm-up's first learning rate."""
    run(small_run, tmp_path / 'first', **{'train_cfg.max_iters': 4, 'default_hooks.checkpoint.save_optimizer': False})
    checkpoint = str(tmp_path / 'first' / 'iter_4.pth')
    with pytest.raises(ValueError, match='`resume`.*save_optimizer'):
        run(small_run, tmp_path / 'second', load_from=checkpoint, resume=True)
    run(small_run, tmp_path / 'third', load_from=checkpoint)  # weights alone can be loaded
