"""Two processes train from a config that inherits a strategy, with the host's runner and hooks, on the CPU."""
import json
import subprocess
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
import torch.distributed as dist
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
CONFIG = """
_base_ = ['{generator}', '{strategy}']
train_cfg = dict(max_iters=4)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
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
        own.write_text(CONFIG.format(generator=config, strategy=STRATEGIES / f'{strategy}.py'))
        cfg = Config.fromfile(own)
        cfg.launcher, cfg.work_dir, cfg.experiment_name = 'pytorch', str(folder / run), run
        if strategy == 'ddp':
            cfg.model_wrapper_cfg.device_ids = None  # the host names a GPU
        if run == 'resumed':
            cfg.load_from, cfg.resume = str(folder / 'fsdp' / 'iter_2.pth'), True
        (RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)).train()


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
    lines = (json.loads(line) for log in folder.glob('*/vis_data/scalars.json') for line in log.read_text().splitlines())
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def test_a_sharded_training_has_the_losses_of_data_parallelism(runs: Path) -> None:
    ddp, fsdp, resumed = (losses(runs / run) for run in RUNS)
    assert sorted(ddp) == sorted(fsdp) == [1, 2, 3, 4] and sorted(resumed) == [3, 4]
    assert [fsdp[step] for step in ddp] == pytest.approx(list(ddp.values()), rel=1e-4)
    assert list(resumed.values()) == pytest.approx([fsdp[3], fsdp[4]], rel=1e-4)
    assert len(set(ddp.values())) == 4


def test_checkpoints_load_into_one_process_and_previews_are_drawn(runs: Path, small_run: SmallRun) -> None:
    keys = {run: read_checkpoint(runs / run / 'iter_4.pth').keys() for run in RUNS}
    assert keys['ddp'] == keys['fsdp'] == keys['resumed']
    for run in RUNS:
        assert load_generator(MODELS.build(small_run.config().model), runs / run / 'iter_4.pth').complete
        assert (runs / run / 'previews' / 'iter_4.png').is_file()


if __name__ == '__main__':
    train(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
