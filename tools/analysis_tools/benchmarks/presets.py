"""What a whole image costs in the settings as released, with every step guided, and in the fast preset.

An image is the sampling loop, guidance in it, and the decode that is kept. All are made in turn, round by round, and
ratios are taken within a round; a batch is one image. Weights are random: costs do not depend on them.
docs/en/samplers.md has the settings, and what the images are like.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from benchmarks.generator import build_network, network_forward
from benchmarks.parts import tiny_decoder
from benchmarks.shapes import Shape
from benchmarks.timing import Spread, paired_ratio, time_in_turn

from mmsynth.guidance import CRFM, LatentCritic
from mmsynth.models.encoders import LatentCodec
from mmsynth.sampling import build_flow_sampler, build_sampler, sample
from mmsynth.utils import isolated_random_state, progress_bar


@dataclass(frozen=True)
class Preset:
    """Settings of an image.

    Attributes:
        num_steps: Of the sampler.
        fast: Sampled by DPM-Solver++ in the place of Euler (TODSynth) or DDIM (TISynth).
        guided: Number of guided steps, from the first on.
        judge: What guidance looks through: 'full' or 'tiny' decode and the segmentor, or the 'latent' critic.
        base: Name of the same settings without guidance; what is beyond it is the share of guidance.
    """

    num_steps: int
    fast: bool = False
    guided: int = 0
    judge: str = 'full'
    base: str = ''


RELEASED = 'as released'
PRESETS = {
    'todsynth': {
        RELEASED: Preset(23, guided=4, base='Euler, 23 steps'),
        'Euler, 23 steps': Preset(23),
        'every step guided': Preset(23, guided=23, base='Euler, 23 steps'),
        'every step guided, tiny decoder': Preset(23, guided=23, judge='tiny', base='Euler, 23 steps'),
        'every step guided, latent critic': Preset(23, guided=23, judge='latent', base='Euler, 23 steps'),
        'DPM-Solver++, 7 steps': Preset(7, fast=True),
        'fast preset': Preset(7, fast=True, guided=1, judge='latent', base='DPM-Solver++, 7 steps'),
        'the same, full decode': Preset(7, fast=True, guided=1, base='DPM-Solver++, 7 steps'),
        'the same, tiny decoder': Preset(7, fast=True, guided=1, judge='tiny', base='DPM-Solver++, 7 steps'),
    },
    'tisynth': {
        RELEASED: Preset(50),
        'fast preset': Preset(15, fast=True),
        'the same, first step guided through a latent critic': Preset(
            15, fast=True, guided=1, judge='latent', base='fast preset'),
    },
}


def time_presets(shape: Shape, *, rounds: int = 5, device: str = 'cpu') -> dict[str, list[float]]:
    """Seconds of an image in every round, by the names of :data:`PRESETS`.

    Raises:
        ValueError: If ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f'`rounds` must be at least 1, got {rounds}.')
    with isolated_random_state(0):
        forward = network_forward(build_network(shape, 'mmsynth').to(device), shape, device, hints_in_step=False)
        codec = shape.codec().to(device)
        steps = {name: _image(preset, forward, codec, shape, device)
                 for name, preset in PRESETS[shape.generator].items()}
    with progress_bar(total=(rounds + 1) * len(steps), unit='image', title='benchmark') as bar:
        return time_in_turn(steps, rounds, device, bar.update)


def presets_table(generator: str, seconds: Mapping[str, Sequence[float]]) -> str:
    """The times as a markdown table; 'faster' is how many images are made while one is made as released."""
    rows = ['| image | s | faster than as released | share of guidance |', '|---|---|---|---|']
    for name, preset in PRESETS[generator].items():
        share = '–'
        if preset.base:
            without = paired_ratio(seconds[preset.base], seconds[name])
            share = f'{1 - without.median:.1%} [{1 - without.high:.1%}, {1 - without.low:.1%}]'
        rows.append(f'| {name} | {Spread.of(seconds[name])} | {paired_ratio(seconds[RELEASED], seconds[name])} | '
                    f'{share} |')
    return '\n'.join(rows)


def _image(preset: Preset, forward: Callable[..., torch.Tensor], codec: LatentCodec, shape: Shape,
           device: str) -> Callable[[], None]:
    solver = dict(type='DPMSolverMultistepScheduler') if preset.fast else None
    if shape.generator == 'todsynth':
        scheduler = build_flow_sampler(solver)
    else:
        scheduler = build_sampler(solver and solver | dict(use_karras_sigmas=True))
    noise = torch.randn(1, *shape.latent_shape, device=device)
    guide = None
    if preset.guided:
        guidance = _guidance(preset, codec, shape).to(device)
        masks = torch.randint(guidance.critic.num_classes, (1, shape.size, shape.size), device=device)
        guide = guidance.bind(codec.decode, masks)

    @torch.no_grad()
    def step() -> None:
        codec.decode(sample(forward, noise, scheduler, preset.num_steps, guide)[0])

    return step


def _guidance(preset: Preset, codec: LatentCodec, shape: Shape) -> CRFM:
    critic = shape.critic()
    if preset.judge == 'latent':
        return CRFM(LatentCritic(codec.channels, codec.factor, critic.num_classes, ignore_index=critic.ignore_index),
                    steps=preset.guided)
    decoder = tiny_decoder(codec) if preset.judge == 'tiny' else None
    return CRFM(critic, steps=preset.guided, decoder=decoder)
