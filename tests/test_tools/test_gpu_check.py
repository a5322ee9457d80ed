"""The benchmark of the GPU check, on the CPU at tiny shapes: it measures what is counted, and names what is missing."""
import subprocess
from typing import Any

import pytest
import torch
from benchmarks import gpu
from benchmarks.memory import count_synthesis, count_training
from small_run import ROOT, command
from test_memory import SMALL, VAE

SETTINGS: dict[str, Any] = dict(size=64, settings=SMALL, vae=VAE)


def test_a_correction_needs_what_is_counted() -> None:
    cost = gpu.synthesis_costs(torch.float32, 'cpu', batch=1, **SETTINGS)['correction']
    counted = count_synthesis(torch.float32, checkpointed_decoder=True, **SETTINGS)
    assert cost.peak == pytest.approx(counted.peak, rel=0.01)
    assert cost.seconds > 0


def test_a_training_step_needs_what_is_counted() -> None:
    codec = count_training('full', batch=1, **SETTINGS)
    cost = gpu.training_cost('full', 'cpu', batch=1, size=64, settings=SMALL)
    without_codec = codec.peak - (codec.weights - codec.buffers - 4 * codec.parameters)
    assert cost.peak == pytest.approx(without_codec, rel=0.02)


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a card')
def test_a_missing_card_is_named() -> None:
    line, env = command(ROOT / 'tools' / 'dev' / 'gpu_check.py', '--no-tests')
    result = subprocess.run(line, env=env, capture_output=True, text=True)
    assert result.returncode == 1 and '--device cuda' in result.stderr and '--device cpu --tiny' in result.stderr
