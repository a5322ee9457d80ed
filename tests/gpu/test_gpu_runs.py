"""Whole runs on the device: training by automatic mixed precision, online synthesis, and two cards by NCCL."""
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import strategy_run
import torch
from mmengine.device import utils as host_device
from mmengine.optim.optimizer import amp_optimizer_wrapper
from online_run import hook_config, online_config, train_online
from PIL import Image
from small_run import ROOT, SmallRun, command, train
from strategy_run import CASES, STEPS, WORLD, reference

from mmsynth.pool import Pool

pytestmark = pytest.mark.process
AMP = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0, optimizer=dict(type='AdamW', lr=0.01))


def test_training_by_automatic_mixed_precision(small_run: SmallRun, tmp_path: Path, device: str,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)  # where the bodies run on a CPU
    monkeypatch.setattr(host_device, 'DEVICE', device)
    losses = []
    precisions = dict(half={'optim_wrapper': dict(AMP, _delete_=True)}, float={'model.dtype': 'float32'})
    for name, overrides in precisions.items():
        runner = train(small_run.config_file, tmp_path / name, overrides)
        assert next(runner.model.parameters()).device.type == torch.device(device).type
        losses.append(runner.message_hub.get_scalar('train/loss').current())
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_online_synthesis_is_that_of_the_cpu(small_run: SmallRun, tmp_path: Path, device: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round: its critic is the segmentor as it was initialised, on the CPU."""
    images, exact = [], dict(config=small_run.config(model__dtype='float32'), checkpoint=str(small_run.generator))
    for place in (device, 'cpu'):
        monkeypatch.setattr(host_device, 'DEVICE', place)
        folder = tmp_path / f'{place}_{len(images)}'
        pool = folder / 'pool'
        runner, recorder = train_online(
            online_config(small_run, pool, folder, hooks=[hook_config(small_run, pool, generator=exact)], iterations=2))
        assert next(runner.model.parameters()).device.type == torch.device(place).type
        assert all(np.isfinite(loss) for loss in recorder.losses.values())
        root = Pool.open(pool).root
        images.append(np.stack([np.asarray(Image.open(file)) for file in sorted((root / 'img_dir').glob('*.png'))]))
    difference = np.abs(images[0].astype(int) - images[1])
    assert len(images[0]) == 4 and difference.mean() < 0.5 and np.percentile(difference, 99) <= 2


@pytest.mark.skipif(torch.cuda.device_count() < WORLD, reason='two cards are needed')
def test_two_cards_compute_what_one_process_does(tiny_sd3: Path, tmp_path: Path) -> None:
    processes = []
    for rank in range(WORLD):
        line, env = command(ROOT / 'tests' / 'strategy_run.py', rank, WORLD, tmp_path, tiny_sd3, *CASES)
        env['CUDA_VISIBLE_DEVICES'] = os.environ.get('CUDA_VISIBLE_DEVICES', '0,1')
        processes.append(subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-3000:]
    for case in CASES:
        losses = reference(case, tiny_sd3)[0]
        for rank in range(WORLD):
            own = strategy_run.read(tmp_path, case, rank)
            assert own['losses'] == pytest.approx([losses[step][rank] for step in range(STEPS)], rel=1e-2)
