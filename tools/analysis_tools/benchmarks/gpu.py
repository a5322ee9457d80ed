"""Time and memory at full shape on a device, beside what was counted: random weights cost what others do."""
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from benchmarks.memory import (
    GIB,
    PeakMemory,
    attention_of_a_card,
    build_network,
    count_synthesis,
    count_training,
    markdown_table,
    network_inputs,
    train_step,
)
from benchmarks.parts import SD3_VAE, SEGMENTOR
from benchmarks.shapes import SD35_MEDIUM
from torch import Tensor, nn

from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.models.encoders import VAECodec

STEPS, CORRECTED = 23, 4  # sampling steps, and those that CRFM corrects in the best of the paper's runs


class Cost(NamedTuple):
    """What a computation took: median seconds, and the most bytes that lived during it."""

    seconds: float
    peak: int


def measure(run: Callable[[], object], device: str, held: Iterable[Tensor], *, rounds: int = 5) -> Cost:
    """Run once to warm up, then some rounds.

    On a CPU, whose allocator keeps no account, storages are counted, those of ``held`` from the start.
    """
    cuda = torch.device(device).type == 'cuda'
    run()
    seconds = []
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    if cuda:
        return Cost(statistics.median(seconds), torch.cuda.max_memory_allocated(device))
    with PeakMemory(held) as counted:
        run()
    return Cost(statistics.median(seconds), counted.peak)


def synthesis_costs(dtype: torch.dtype, device: str, *, batch: int, size: int, settings: Mapping[str, Any],
                    vae: Mapping[str, Any]) -> dict[str, Cost]:
    """A pass of the network, a decode, and a correction through a checkpointed decoder and a DeepLabV3+."""
    network = _fill(lambda: build_network(settings, 'full'), device, dtype).requires_grad_(False)
    codec = _fill(lambda: VAECodec(config=dict(vae), gradient_checkpointing=True), device, dtype)
    guidance = CRFM(SegmentorCritic(dict(model=SEGMENTOR))).to(device)
    inputs = [value.to(dtype) for value in network_inputs(settings, size, batch, device)]
    masks = torch.zeros(batch, size, size, dtype=torch.long, device=device)

    def correct() -> None:
        clean = inputs[0].float().requires_grad_()
        loss = guidance.judge(clean, lambda latents: codec.decode(latents.to(dtype)).float(), masks).loss
        torch.autograd.grad(loss.sum(), clean)

    parts = nn.ModuleList([network, codec, guidance])
    held = [*parts.parameters(), *parts.buffers()]
    return dict(network=measure(torch.no_grad()(lambda: network(*inputs)), device, held),
                decode=measure(torch.no_grad()(lambda: codec.decode(inputs[0])), device, held),
                correction=measure(correct, device, held))


def training_cost(trainable: str, device: str, *, batch: int, size: int, settings: Mapping[str, Any]) -> Cost:
    """A step of AdamW over float32 weights under bfloat16 autocast."""
    network = _fill(lambda: build_network(settings, trainable), device, torch.float32)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in network.parameters() if parameter.requires_grad], lr=1e-6, foreach=False)
    inputs = network_inputs(settings, size, batch, device)

    def step() -> None:
        with attention_of_a_card():
            train_step(network, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's states
    states = [value for state in optimizer.state.values() for value in state.values()]
    return measure(step, device, [*network.parameters(), *network.buffers(), *states], rounds=3)


def report(device: str, *, size: int = 512, settings: Mapping[str, Any] = SD35_MEDIUM,
           vae: Mapping[str, Any] = SD3_VAE) -> str:
    """Markdown: what was measured on the device, and beside it what :mod:`benchmarks.memory` counts."""
    shape = dict(size=size, settings=settings, vae=vae)
    capacity = torch.cuda.get_device_properties(device).total_memory if torch.device(device).type == 'cuda' else None
    rows, per_image = [], {}
    for dtype in (torch.float32, torch.bfloat16):
        counted = count_synthesis(dtype, checkpointed_decoder=True, **shape)
        for batch in (1, 4):
            name = f'{str(dtype).removeprefix("torch.")}, batch {batch}'
            costs = synthesis_costs(dtype, device, batch=batch, **shape)
            _release(device)
            seconds = {'plain': STEPS * costs['network'].seconds + costs['decode'].seconds}
            seconds['CRFM'] = seconds['plain'] + CORRECTED * costs['correction'].seconds
            per_image[name] = {way: value / batch for way, value in seconds.items()}
            rows += [[f'{part}, {name}', f'{cost.seconds:.4f}', cost.peak,
                      counted.peak if batch == 1 and part == 'correction' else '–'] for part, cost in costs.items()]
    for trainable in ('lora', 'full'):
        counted = count_training(trainable, batch=1, **shape).peak
        if capacity is not None and counted > 0.92 * capacity:
            rows.append([f'training step, {trainable}, batch 1', 'does not fit', '–', counted])
            continue
        cost = training_cost(trainable, device, batch=1, size=size, settings=settings)
        _release(device)
        rows.append([f'training step, {trainable}, batch 1', f'{cost.seconds:.4f}', cost.peak, counted])
    head = [f'{size} x {size} pixels', 'seconds', 'peak GiB, measured', 'peak GiB, counted']
    images = [[name, *(f'{value:.3f}' for value in seconds.values()), f'{3600 / seconds["CRFM"]:.0f}']
              for name, seconds in per_image.items()]
    return '\n'.join([
        f'{describe(device)}. Random weights in the shapes of Stable Diffusion 3.5 medium with its mask branch, '
        'DeepLabV3+ (ResNet-50) as the critic, `gradient_checkpointing` of the codec.', '',
        *markdown_table(head, rows),
        *markdown_table([f'{STEPS} steps, {CORRECTED} corrected', 's per image, plain', 's per image, CRFM',
                         'images per hour, CRFM'], images)])


def describe(device: str) -> str:
    """The device's name and memory, and torch's version."""
    if torch.device(device).type != 'cuda':
        return f'{platform.processor() or platform.machine()} (CPU), {torch.get_num_threads()} threads, ' \
               f'torch {torch.__version__}'
    properties = torch.cuda.get_device_properties(device)
    return f'{properties.name}, {properties.total_memory / GIB:.0f} GiB, torch {torch.__version__}'


def _fill(build: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> nn.Module:
    """Build a module on a device, all its tensors small random numbers."""
    with torch.device('meta'):
        module = build()
    module = module.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.normal_(std=0.02)
    return module


def _wait(device: str) -> None:
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def _release(device: str) -> None:
    if torch.device(device).type == 'cuda':
        torch.cuda.empty_cache()
