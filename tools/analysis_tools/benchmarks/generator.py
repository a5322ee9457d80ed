"""What a generator costs beside diffusers' own network of the same shape: passes, training steps, images, guidance.

Everything is made in turn, round by round, and ratios are taken within a round: median and quartiles of those. A batch
is one image. Weights are random: costs do not depend on them.

- network: one pass without gradient.
- bfloat16: the same under autocast, as with ``dtype='bfloat16'``; weights that do not train are held in it.
- training step: forward, mean squared error, backward, AdamW; every weight trains (of TISynth's ``legacy=True``, as
  released, not the encoder of the U-Net).
- image: the sampling loop and the full decode.
- corrected step: a pass of the network and CRFM's correction (clean estimate, decode, critic, gradient), with its
  parts, see :mod:`benchmarks.corrected_step`.

Counted instead of timed: parameters, and floating point operations by torch's ``FlopCounterMode`` (a multiplication and
an addition are two), on the meta device; nothing is computed.
"""
import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from benchmarks.corrected_step import PARTS, CorrectedStep
from benchmarks.shapes import Shape
from benchmarks.timing import Spread, paired_ratio, time_in_turn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmsynth.sampling import build_flow_scheduler, build_sampler, sample
from mmsynth.utils import isolated_random_state, progress_bar

KINDS = ('diffusers', 'mmsynth', 'mmsynth, legacy')
BFLOAT16 = 'mmsynth, bfloat16'
_WHOLE = 'corrected step'


@dataclass(frozen=True)
class Counts:
    """What a network of one kind is.

    Attributes:
        parameters: How many.
        forward: Operations of a pass.
        training: Operations of a pass forwards and backwards.
    """

    parameters: int
    forward: int
    training: int


def time_generator(shape: Shape, *, rounds: int = 5, device: str = 'cpu') -> dict[str, list[float]]:
    """Seconds of each measure in every round; the names are those of :func:`tables`.

    Raises:
        ValueError: If ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f'`rounds` must be at least 1, got {rounds}.')
    with isolated_random_state(0):
        network = build_network(shape, 'mmsynth').to(device)
        corrected = CorrectedStep(network_forward(network, shape, device, hints_in_step=False), shape, device)
        steps = _network_steps(shape, device) | {_WHOLE: corrected}
    with progress_bar(total=(rounds + 1) * len(steps), unit='step', title='benchmark') as bar:
        seconds = time_in_turn(steps, rounds, device, bar.update)
    return seconds | {part: [record[part] for record in corrected.records[1:]] for part in PARTS}


def count_generator(shape: Shape) -> dict[str, Counts]:
    """Parameters and operations of each kind of network."""
    counts = {}
    for kind in KINDS:
        with torch.device('meta'):
            network = build_network(shape, kind).to('meta')  # what came from numpy is there too
        forward = network_forward(network, shape, 'meta', hints_in_step=False)
        step = network_forward(network, shape, 'meta', hints_in_step=True)
        counts[kind] = Counts(sum(weight.numel() for weight in network.parameters()),
                              _operations(torch.no_grad()(forward)), _operations(partial(_backward, step)))
    return counts


def _backward(forward: Callable[[], Tensor]) -> None:
    forward().sum().backward()


def _operations(step: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    # Not by module: the hooks for that fail where a network runs its first half without gradient, as a legacy one does
    counter.mod_tracker = _NoModules()
    with counter:
        step()
    return counter.get_total_flops()


class _NoModules(nullcontext):
    parents = ('Global', )


def tables(seconds: Mapping[str, Sequence[float]]) -> str:
    """The measures as two markdown tables: beside diffusers, and the parts of a corrected step."""
    rows = ['| | s | of diffusers | legacy, of mmsynth | bfloat16, of mmsynth |', '|---|---|---|---|---|']
    for measure in ('network', 'training step', 'image'):
        own, stock = (seconds[f'{measure}, {kind}'] for kind in ('mmsynth', 'diffusers'))
        legacy = seconds.get(f'{measure}, mmsynth, legacy')
        rows.append(f'| {measure} | {Spread.of(own)} | {paired_ratio(own, stock)} | '
                    f'{"–" if legacy is None else paired_ratio(legacy, own)} | '
                    f'{paired_ratio(seconds[f"{measure}, {BFLOAT16}"], own)} |')
    whole = seconds[_WHOLE]
    parts = {part: seconds[part] for part in PARTS}
    parts['rest'] = [total - sum(values) for total, *values in zip(whole, *parts.values(), strict=True)]
    rows += ['', f'| part of a {_WHOLE} | s | share |', '|---|---|---|']
    rows += [f'| {part} | {Spread.of(values)} | {paired_ratio(values, whole)} |' for part, values in parts.items()]
    rows.append(f'| whole | {Spread.of(whole)} | 1 |')
    return '\n'.join(rows)


def count_table(counts: Mapping[str, Counts]) -> str:
    """The counts as a markdown table."""
    stock = counts['diffusers']
    rows = ['| counted | parameters | of diffusers | GFLOP per pass | of diffusers | GFLOP forwards and backwards '
            '| of diffusers |', '|---|---|---|---|---|---|---|']
    for kind, own in counts.items():
        pairs = ((own.parameters / 1e6, stock.parameters / 1e6), (own.forward / 1e9, stock.forward / 1e9),
                 (own.training / 1e9, stock.training / 1e9))
        cells = [f'{value:,.1f}{" M" if place == 0 else ""} | {value / base:.3g}'
                 for place, (value, base) in enumerate(pairs)]
        rows.append(f'| {kind} | {" | ".join(cells)} |')
    return '\n'.join(rows)


def build_network(shape: Shape, kind: str) -> nn.Module:
    return shape.stock() if kind == 'diffusers' else shape.own(legacy=kind.endswith('legacy'))


def network_forward(network: nn.Module, shape: Shape, device: str, *, hints_in_step: bool) -> Callable[..., Tensor]:
    """A pass of a network on fixed conditions: ``forward(latents, timestep)``, both optional.

    Args:
        network: Of one of the kinds.
        shape: Its shape.
        device: Where.
        hints_in_step: Encode TISynth's mask and reference in every pass, as training does; sampling does so once.
    """
    text, control = shape.text(device), shape.control(device)
    noise, time = torch.randn(1, *shape.latent_shape, device=device), torch.full((1, ), 500.0, device=device)
    stock = type(network).__module__.startswith('diffusers')
    if shape.generator == 'todsynth':
        def forward(latents: Tensor = noise, timestep: Tensor = time) -> Tensor:
            if stock:
                return network(latents, *text, timestep, return_dict=False)[0]
            return network(latents, timestep, *text, *control)

        return forward

    def encode_hints() -> list[Tensor]:
        return [] if stock else [network.encode_mask(control[0]), network.encode_reference(control[1])]

    with torch.no_grad():
        hints = encode_hints()

    def forward(latents: Tensor = noise, timestep: Tensor = time) -> Tensor:
        if stock:
            return network(latents, timestep, *text, return_dict=False)[0]
        return network(latents, timestep, *text, *(encode_hints() if hints_in_step else hints))

    return forward


def _network_steps(shape: Shape, device: str) -> dict[str, Callable[[], object]]:
    codec = shape.codec().to(device)
    sampler = build_flow_scheduler() if shape.generator == 'todsynth' else build_sampler()
    noise = torch.randn(1, *shape.latent_shape, device=device)
    steps = {}
    for kind in KINDS:
        network = build_network(shape, kind).to(device)
        forward = network_forward(network, shape, device, hints_in_step=False)
        steps[f'network, {kind}'] = torch.no_grad()(forward)
        steps[f'training step, {kind}'] = _training_step(network, shape, device)
        if not kind.endswith('legacy'):
            steps[f'image, {kind}'] = _image(forward, codec, sampler, noise, shape.num_steps)
    network = build_network(shape, 'mmsynth').to(device)
    held = copy.deepcopy(network).to(torch.bfloat16)
    with _autocast(device):
        forward = _in_bfloat16(network_forward(held, shape, device, hints_in_step=False), device)
    steps[f'network, {BFLOAT16}'] = torch.no_grad()(forward)
    steps[f'image, {BFLOAT16}'] = _image(forward, codec, sampler, noise, shape.num_steps)
    steps[f'training step, {BFLOAT16}'] = _training_step(network, shape, device, bfloat16=True)
    return steps


def _autocast(device: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def _in_bfloat16(forward: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    def cast(*inputs: Tensor) -> Tensor:
        with _autocast(device):
            return forward(*inputs).float()

    return cast


def _training_step(network: nn.Module, shape: Shape, device: str, *, bfloat16: bool = False) -> Callable[[], None]:
    forward = network_forward(network, shape, device, hints_in_step=True)
    forward = _in_bfloat16(forward, device) if bfloat16 else forward
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    target = torch.randn(1, *shape.latent_shape, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (forward() - target).square().mean().backward()
        optimizer.step()

    return step


def _image(forward: Callable[..., Tensor], codec: Any, sampler: Any, noise: Tensor,
           num_steps: int) -> Callable[[], None]:
    @torch.no_grad()
    def step() -> None:
        codec.decode(sample(forward, noise, sampler, num_steps)[0])

    return step
