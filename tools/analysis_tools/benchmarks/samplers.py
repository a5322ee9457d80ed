"""How far each sampler is from the image that its generator tends to, by how often it asks the network.

All start from the same noise. The limit is what the sampler that converges fastest gives with many steps; the distance
is the root mean square over pixels and channels, in grey levels of 255.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmsynth.models import TISynth, TODSynth
from mmsynth.sampling import build_flow_sampler, build_sampler
from mmsynth.structures import SynthDataSample
from mmsynth.utils import progress_bar

REFERENCE_STEPS = 200
FLOW = {
    'Euler': dict(type='FlowMatchEulerDiscreteScheduler'),
    'DPM-Solver++': dict(type='DPMSolverMultistepScheduler'),
    'Heun': dict(type='FlowMatchHeunDiscreteScheduler'),  # the last: the reference
}
NOISE = {
    'DDIM': dict(type='DDIMScheduler'),
    'DPM-Solver++': dict(type='DPMSolverMultistepScheduler'),
    'UniPC, Karras': dict(type='UniPCMultistepScheduler', use_karras_sigmas=True),
    'DPM-Solver++, Karras': dict(type='DPMSolverMultistepScheduler', use_karras_sigmas=True),
}


def compare_samplers(generator: TODSynth | TISynth, samples: Sequence[SynthDataSample], seeds: Sequence[int],
                     passes: Sequence[int]) -> dict[str, list[float]]:
    """The distance of each sampler for each number of passes of the network.

    Args:
        generator: In eval mode; its sampler and its step count are put back.
        samples: What to generate, of one size, as the generator's preprocessor gives them.
        seeds: One per sample.
        passes: Numbers of passes of the network, at least 1 each. Heun takes the steps that cost no more.

    Raises:
        ValueError: If a number is below 1.
    """
    if min(passes) < 1:
        raise ValueError(f'`passes` must be at least 1 each, got {list(passes)}.')
    samplers = FLOW if isinstance(generator, TODSynth) else NOISE
    own = generator.sampler, generator.num_steps

    def generate(sampler: Mapping[str, Any], num_steps: int) -> Tensor:
        generator.sampler, generator.num_steps = _build(generator, sampler), num_steps
        generated = generator.synthesize([sample.clone() for sample in samples], seeds)
        return torch.stack([sample.generated_img.data for sample in generated]).float()

    try:
        with progress_bar(total=1 + len(samplers) * len(passes), unit='run', title='compare samplers') as bar:
            limit = generate(list(samplers.values())[-1], REFERENCE_STEPS)
            bar.update()
            distances: dict[str, list[float]] = {name: [] for name in samplers}
            for name, sampler in samplers.items():
                for count in passes:
                    images = generate(sampler, (count + 1) // 2 if name == 'Heun' else count)
                    distances[name].append(float((images - limit).square().mean().sqrt()))
                    bar.update()
    finally:
        generator.sampler, generator.num_steps = own
    return distances


def table(distances: Mapping[str, Sequence[float]], passes: Sequence[int]) -> str:
    """The distances as a markdown table."""
    rows = [f'| passes of the network | {" | ".join(map(str, passes))} |', '|---' * (len(passes) + 1) + '|']
    rows += [f'| {name} | {" | ".join(f"{value:.1f}" for value in values)} |' for name, values in distances.items()]
    return '\n'.join(rows)


def _build(generator: TODSynth | TISynth, sampler: Mapping[str, Any]) -> Any:
    if isinstance(generator, TODSynth):
        return build_flow_sampler(sampler, {key: generator.scheduler.config[key]
                                            for key in ('shift', 'num_train_timesteps')})
    config = generator.scheduler.config
    return build_sampler(sampler, {key: config[key] for key in ('beta_schedule', 'beta_start', 'beta_end',
                                                                'num_train_timesteps')})
