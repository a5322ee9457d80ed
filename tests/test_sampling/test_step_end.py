"""The callback at the end of a step: what it is told, and that sampling goes on with what it returns."""
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from mmsynth.sampling import sample

SHAPE = (2, 3, 4, 4)


def bent(latents: Tensor, timestep: Tensor) -> Tensor:
    return torch.sin(3 * latents) + timestep[:, None, None, None] / 1000


@pytest.mark.parametrize('scheduler', [FlowMatchEulerDiscreteScheduler(), FlowMatchHeunDiscreteScheduler(),
                                       DDIMScheduler(clip_sample=False), EulerDiscreteScheduler()],
                         ids=lambda scheduler: type(scheduler).__name__)
def test_a_callback_that_changes_nothing(scheduler: SchedulerMixin) -> None:
    noise, seen = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), []

    def watch(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        seen.append((index, timestep.shape, float(timestep)))
        return latents

    latents, _ = sample(bent, noise, scheduler, 4, on_step_end=watch)
    assert torch.equal(latents, sample(bent, noise, scheduler, 4)[0])
    assert [entry[0] for entry in seen] == [0, 1, 2, 3] and all(entry[1] == () for entry in seen)
    times = [entry[2] for entry in seen]
    assert times == sorted(times, reverse=True) and 700 < times[0] <= 1000  # DDIM leads with 750


def test_the_run_goes_on_with_what_is_returned() -> None:
    """With a field of zeros nothing else moves the latents; a repeated step ends once."""
    noise = torch.zeros(SHAPE)
    latents, _ = sample(lambda z, t: torch.zeros_like(z), noise, FlowMatchEulerDiscreteScheduler(), 3,
                        on_step_end=lambda index, timestep, latents: latents + 10**index)
    assert torch.equal(latents, torch.full(SHAPE, 111.0))
    latents, _ = sample(lambda z, t: torch.zeros_like(z), noise, FlowMatchEulerDiscreteScheduler(), 3,
                        lambda prediction, step: (prediction, [{}] * 2), recurrence=3,
                        draw_noise=lambda index, repetition: torch.zeros(SHAPE),
                        on_step_end=lambda index, timestep, latents: latents + 1)
    assert latents.isfinite().all() and float(latents.max()) < 4  # noised again, it is scaled down
