"""Memory by counting: the same bytes on tensors with and without values, and sums in closed form."""
import subprocess
from typing import Any

import pytest
import torch
from benchmarks import memory
from benchmarks.memory import GIB, PeakMemory, build_network, count_synthesis, count_training, shard
from benchmarks.shapes import SD35_MEDIUM
from small_run import ROOT, command
from torch._subclasses.fake_tensor import FakeTensorMode

SMALL = SD35_MEDIUM | dict(
    sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
    caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8, dual_attention_layers=(0, ))
VAE = dict(block_out_channels=(8, 8, 8, 8), latent_channels=16, norm_num_groups=4, layers_per_block=1,
           down_block_types=('DownEncoderBlock2D', ) * 4, up_block_types=('UpDecoderBlock2D', ) * 4)
SETTINGS: dict[str, Any] = dict(size=64, settings=SMALL, vae=VAE)


def test_the_peak_is_of_what_lives_together() -> None:
    given = torch.empty(10)
    with PeakMemory([given]) as counted:
        first = torch.zeros(1000)
        second = first + 1
        view = second[:10]
        del first
        third = view * 2
    assert counted.peak == 4 * 2010 and counted.now == 4 * (10 + 1000 + 10)
    del second, view, third
    assert counted.now == 40


def step(network: torch.nn.Module) -> int:
    with PeakMemory([*network.parameters(), *network.buffers()]) as counted:
        memory.train_step(network, memory.network_inputs(SMALL, 64, 2)).backward()
    return counted.peak


@pytest.mark.parametrize('trainable', ['full', 'lora'])
def test_tensors_without_values_need_what_others_need(trainable: str) -> None:
    real = step(build_network(SMALL, trainable))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert step(memory._without_values(lambda: build_network(SMALL, trainable))) == real


def test_training_in_closed_form() -> None:
    full, lora = (count_training(trainable, batch=1, **SETTINGS) for trainable in ('full', 'lora'))
    network = build_network(SMALL, 'full')
    assert full.parameters == sum(value.numel() for value in network.parameters()) == sum(full.units)
    assert full.gradients == 4 * full.trainable and lora.gradients == 4 * lora.trainable
    steps = 4 * sum(value.requires_grad for value in network.parameters())  # AdamW counts them for every tensor
    assert full.optimizer == 8 * full.trainable + steps
    assert full.step > full.gradients and full.backward > full.gradients and full.activations > 0
    assert full.peak == full.weights + full.optimizer + max(full.forward, full.backward, full.step)
    more = count_training('lora', batch=4, **SETTINGS)
    assert 3 < more.activations / lora.activations < 4.1 and more.optimizer == lora.optimizer


def test_a_share_is_a_share() -> None:
    full = count_training('full', batch=1, **SETTINGS)
    one, four = (shard(full, cards, gathered=4) for cards in (1, 4))
    assert one['weights'] + one['tables_and_codec'] == full.weights
    assert all(four[part] == one[part] / 4 for part in ('weights', 'gradients', 'optimizer'))
    assert all(four[part] == one[part] for part in ('tables_and_codec', 'gathered', 'activations'))
    assert shard(full, 4, gathered=2)['gathered'] == four['gathered'] / 2


def test_synthesis_in_bfloat16_needs_less_and_a_checkpointed_decoder_too() -> None:
    plain, half = (count_synthesis(dtype, checkpointed_decoder=False, **SETTINGS)
                   for dtype in (torch.float32, torch.bfloat16))
    assert half.weights < plain.weights and half.guidance < plain.guidance and half.network < plain.network
    assert count_synthesis(torch.float32, checkpointed_decoder=True, **SETTINGS).guidance < plain.guidance


def test_stable_diffusion_35_medium_with_its_mask_branch() -> None:
    with torch.device('meta'):
        network = build_network(SD35_MEDIUM, 'full')
    assert sum(value.numel() for value in network.parameters()) == 3_241_800_384
    trunk = sum(value.numel() for value in network.trunk.parameters())
    assert trunk == pytest.approx(2.24e9, rel=0.01)  # with its position table 2.47 B: the published 2.5 B
    assert sum(value.numel() * 4 for value in network.buffers()) / GIB == pytest.approx(1.69, abs=0.01)


def test_operations_grow_with_the_pixels() -> None:
    few, many = (memory.count_flops(size=size, settings=SMALL, vae=VAE) for size in (64, 128))
    assert 3.9 < many['decode'] / few['decode'] < 4.5 and few['correction'] > 2 * few['decode']


def test_operations_hold_the_attention() -> None:
    """Both products of it, over image, text and mask tokens: they grow with the square of their number."""
    settings = SMALL | dict(dual_attention_layers=())
    counts = [memory.count_flops(size=size, settings=settings, vae=VAE)['network'] for size in (64, 96, 128)]
    width = settings['num_attention_heads'] * settings['attention_head_dim']
    tokens = [memory.TOKENS + 2 * (size // 8 // settings['patch_size'])**2 for size in (64, 96, 128)]
    layers = settings['num_layers']
    rest = [count - 4 * layers * number**2 * width for count, number in zip(counts, tokens)]
    slopes = [(rest[i + 1] - rest[i]) / (tokens[i + 1] - tokens[i]) for i in (0, 1)]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02)  # what is left grows with the tokens


@pytest.mark.process
@pytest.mark.parametrize('option, value', [('--size', '500'), ('--cards', '0')])
def test_mistakes_are_named(option: str, value: str) -> None:
    line, env = command(ROOT / 'tools' / 'analysis_tools' / 'memory.py', option, value)
    result = subprocess.run(line, env=env, capture_output=True, text=True)
    assert result.returncode == 2 and option in result.stderr and value in result.stderr
