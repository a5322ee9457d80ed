"""Two processes train from a config that inherits a strategy, with the host's runner and hooks, on the CPU."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
import torch.distributed as dist
from mmengine._strategy import deepspeed as host_deepspeed
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from small_run import ROOT, SmallRun, command
from yapf.yapflib import yapf_api

from mmsynth.models.checkpoints import load_generator
from mmsynth.registry import MODELS
from mmsynth.utils import read_checkpoint

pytestmark = pytest.mark.process
STRATEGIES = ROOT / 'configs' / '_base_' / 'strategies'
RUNS = {'ddp': 'ddp', 'fsdp': 'fsdp', 'resumed': 'fsdp'}  # run: strategy
if importlib.util.find_spec('deepspeed'):
    RUNS |= {'zero2': 'deepspeed_zero2', 'zero3': 'deepspeed_zero3'}
CONFIG = """
_base_ = ['{generator}', '{strategy}']
train_cfg = dict(max_iters=4)
train_dataloader = dict(batch_size=2)
optim_wrapper = {optim_wrapper}
param_scheduler = [dict(type='LinearLR', start_factor=0.1, begin=0, end=4, by_epoch=False)]
custom_hooks = [
    dict(type='mmsynth.FitLatentCodecHook', num_images=4),
    dict(type='mmsynth.ResumeCheckHook'),
    dict(type='mmsynth.PreviewHook', interval=2, num_samples=2),
]
"""


def train(rank: int, config: Path, folder: Path) -> None:
    """One process of all runs."""
    torch.set_num_threads(1)
    import mmsynth  # noqa: F401  (registers the strategy)
    yapf_api.FormatCode = lambda text, **options: (text, True)  # as for all tests
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    for run, strategy in RUNS.items():
        own = folder / f'{run}_{rank}.py'
        own.write_text(CONFIG.format(generator=config, strategy=STRATEGIES / f'{strategy}.py', optim_wrapper=(
            "dict(_delete_=True, type='DeepSpeedOptimWrapper', optimizer=dict(type='AdamW', lr=0.01))"
            if strategy.startswith('deepspeed') else 'dict(clip_grad=dict(max_norm=1.0))')))
        cfg = Config.fromfile(own)
        if strategy.startswith('deepspeed'):
            cfg.strategy.config.torch_autocast.enabled = False  # to compare
            cfg.strategy.zero_optimization.reduce_scatter = False  # gloo has none
        cfg.launcher, cfg.work_dir, cfg.experiment_name = 'pytorch', str(folder / run), run
        if strategy == 'ddp':
            cfg.model_wrapper_cfg.device_ids = None  # the host names a GPU
        if run == 'resumed':
            cfg.load_from, cfg.resume = str(folder / 'fsdp' / 'iter_2.pth'), True
        (RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)).train()
        if strategy.startswith('deepspeed'):
            host_deepspeed.register_deepspeed_optimizers = list  # which works once in a process


@pytest.fixture(scope='module')
def runs(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained all runs."""
    folder = tmp_path_factory.mktemp('strategies')
    processes = []
    for rank in range(2):
        line, env = command(__file__, rank, small_run.config_file, folder)
        env |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
        processes.append(subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-3000:]
    return folder


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for log in folder.glob('*/vis_data/scalars.json') for line in log.open()]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def test_a_sharded_training_has_the_losses_of_data_parallelism(runs: Path) -> None:
    ddp = losses(runs / 'ddp')
    assert sorted(ddp) == [1, 2, 3, 4] and len(set(ddp.values())) == 4
    for run in RUNS:
        own = losses(runs / run)
        assert sorted(own) == ([3, 4] if run == 'resumed' else [1, 2, 3, 4])
        assert list(own.values()) == pytest.approx([ddp[step] for step in own], rel=1e-4)


def test_previews_are_drawn(runs: Path) -> None:
    assert all((runs / run / 'previews' / 'iter_4.png').is_file() for run in RUNS)


@pytest.mark.parametrize('run', RUNS)
def test_checkpoints_load_into_one_process(runs: Path, small_run: SmallRun, tmp_path: Path, run: str) -> None:
    file = runs / run / 'iter_4.pth'
    if file.is_dir():  # DeepSpeed's shards, with the script that it writes beside them
        script = [sys.executable, file.parent / 'zero_to_fp32.py', file.parent, tmp_path]
        subprocess.run([*map(str, script), '--safe_serialization', '-t', file.name], check=True, capture_output=True)
        file = tmp_path / 'model.safetensors'
    weights, expected = read_checkpoint(file), read_checkpoint(runs / 'ddp' / 'iter_4.pth')
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-3)
    assert load_generator(MODELS.build(small_run.config().model), file).complete


if __name__ == '__main__':
    train(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
