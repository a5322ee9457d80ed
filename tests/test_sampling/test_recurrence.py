"""Guided steps that are taken several times: the noise put back is the forward process's, and nothing else changes."""
import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from mmsynth.sampling import (
    FLOW_SAMPLERS,
    SAMPLERS,
    SamplingStep,
    build_flow_sampler,
    build_flow_scheduler,
    build_sampler,
    sample,
)
from mmsynth.sampling.loop import _levels, _noise_again

SCHEDULERS = {f'flow {name}': lambda name=name: build_flow_sampler(dict(type=name)) for name in FLOW_SAMPLERS} | {
    name: lambda name=name: build_sampler(dict(type=name)) for name in SAMPLERS}
STEPS = 5


@pytest.fixture(params=SCHEDULERS)
def scheduler(request) -> SchedulerMixin:
    return SCHEDULERS[request.param]()


def noise(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def draw_noise(index: int, repetition: int) -> Tensor:
    return noise(100 * index + repetition + 1)


def untouched(prediction: Tensor, step: SamplingStep) -> tuple[Tensor, list[dict]]:
    return prediction, [dict(step=step.index)] * len(prediction)


def test_the_latent_has_the_level_of_noise_that_it_had(scheduler: SchedulerMixin) -> None:
    """z_s = alpha_s z0 + sigma_s eps becomes alpha_t z0 + noise of variance sigma_t², for s < t, at every step."""
    scheduler.set_timesteps(STEPS)
    for index in range(STEPS):
        (alpha, sigma), (next_alpha, next_sigma) = _levels(scheduler, index), _levels(scheduler, index + 1)
        before, after = (next_alpha, alpha) if isinstance(scheduler, EulerDiscreteScheduler) else (1, 1)  # of z / alpha
        kept = after * float(_noise_again(torch.ones(1), torch.zeros(1), scheduler, index)) / before
        added = after * float(_noise_again(torch.zeros(1), torch.ones(1), scheduler, index))
        assert kept * next_alpha == pytest.approx(alpha, abs=1e-6)
        assert math.hypot(kept * next_sigma, added) == pytest.approx(sigma, abs=1e-5)


def test_a_network_that_knows_the_clean_latent_ends_there() -> None:
    """However often a step is taken, and through whatever noise."""
    clean = noise(7)
    latents, _ = sample(lambda z, timestep: (z - clean) / (timestep[0] / 1000), noise(), build_flow_scheduler(), STEPS,
                        untouched, recurrence=3, draw_noise=draw_noise)
    torch.testing.assert_close(latents, clean, atol=1e-4, rtol=0)


def test_only_guided_steps_are_repeated_and_those_with_a_signal() -> None:
    asked = []

    def predict(z: Tensor, timestep: Tensor) -> Tensor:
        asked.append(round(float(timestep[0])))
        return torch.tanh(z)

    def first_three(prediction: Tensor, step: SamplingStep) -> tuple[Tensor, list[dict] | None]:
        return untouched(prediction, step) if step.index < 3 else (prediction, None)

    _, traces = sample(predict, noise(), build_flow_scheduler(dict(shift=1.0)), STEPS, first_three, recurrence=2,
                       draw_noise=draw_noise)
    assert [asked.count(timestep) for timestep in sorted(set(asked), reverse=True)] == [1, 2, 2, 1, 1]
    assert [record['step'] for record in traces[0]] == [0, 1, 1, 2, 2]


def test_once_is_bit_equal_to_no_recurrence(scheduler: SchedulerMixin) -> None:
    def run(**settings) -> Tensor:
        return sample(lambda z, t: torch.tanh(z), noise(), scheduler, STEPS, untouched, **settings)[0]

    plain, once, twice = run(), run(recurrence=1, draw_noise=draw_noise), run(recurrence=2, draw_noise=draw_noise)
    assert torch.equal(plain, once) and not torch.equal(plain, twice)
