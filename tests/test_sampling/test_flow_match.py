"""The flow-matching loop against velocity fields whose solution is known."""
import math
from collections.abc import Sequence

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmsynth.sampling import SamplingStep, sample

SHAPE = (2, 3, 4, 4)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def scheduler(shift: float = 3.0) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def bent(latents: Tensor, timestep: Tensor) -> Tensor:
    """A velocity that depends on latent and time, with no meaning."""
    return torch.sin(3 * latents) + timestep[:, None, None, None] / 1000


class Recorder:
    """A guide that keeps what it is told and adds ``change`` to every prediction."""

    def __init__(self, change: float = 0.0, records: Sequence[dict[str, float]] | None = None) -> None:
        self.change, self.records = change, records
        self.steps: list[SamplingStep] = []

    def __call__(self, prediction: Tensor, step: SamplingStep) -> tuple[Tensor, Sequence[dict[str, float]] | None]:
        self.steps.append(step)
        return (prediction + self.change if self.change else prediction), self.records


@pytest.mark.parametrize('num_steps', [1, 2, 7, 23])
@pytest.mark.parametrize('shift', [1.0, 3.0])
def test_a_perfect_prediction_arrives_at_the_clean_latent(num_steps: int, shift: float) -> None:
    """The field ``eps - z0`` is constant along the way, so that Euler makes no error at any step length."""
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    latents, _ = sample(lambda z, t: noise - clean, noise, scheduler(shift), num_steps)
    torch.testing.assert_close(latents, clean, atol=1e-5, rtol=0)


def test_a_linear_field_converges_at_first_order() -> None:
    """``dz/dsigma = a z`` has ``z(0) = z(1) exp(-a)``; with twice the steps Euler's error halves."""
    rate, noise = 0.8, torch.randn(SHAPE)
    ends = [sample(lambda z, t: rate * z, noise, scheduler(), steps)[0] for steps in (20, 40, 80)]
    errors = [float((end - noise * math.exp(-rate)).abs().max()) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2) and errors[1] / errors[2] == pytest.approx(2, abs=0.1)
    assert errors[2] < 0.02


def test_a_field_of_time_sees_a_thousand_sigma() -> None:
    """``dz/dsigma = sigma`` has ``z(0) = z(1) - 1/2``."""
    noise = torch.randn(SHAPE)
    latents, _ = sample(lambda z, t: (t / 1000)[:, None, None, None].expand_as(z), noise, scheduler(), 500)
    torch.testing.assert_close(latents, noise - 0.5, atol=2e-3, rtol=0)  # Euler's own error at 500 steps


def test_the_network_gets_one_timestep_per_sample_from_noise_down() -> None:
    seen = []

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        assert timestep.shape == (2, ) and timestep[0] == timestep[1]
        seen.append(float(timestep[0]))
        return latents

    sample(predict, torch.randn(SHAPE), scheduler(), 4)
    assert seen[0] == 1000 and seen == sorted(seen, reverse=True) and len(seen) == 4


def test_the_scheduler_is_left_as_it_was() -> None:
    own = scheduler()
    before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in vars(own).items()}
    noise = torch.randn(SHAPE)
    first, _ = sample(bent, noise, own, 5)
    after = vars(own)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key], key
    sample(bent, noise, own, 9)
    assert torch.equal(sample(bent, noise, own, 5)[0], first)


def test_the_noise_given_is_not_written_to_and_gradients_are_off() -> None:
    noise = torch.randn(SHAPE, requires_grad=True)
    before = noise.detach().clone()
    latents, _ = sample(bent, noise, scheduler(), 3)
    assert torch.equal(noise, before) and not latents.requires_grad


def test_two_samples_are_twice_one_sample() -> None:
    noise = torch.randn(SHAPE)
    together, _ = sample(bent, noise, scheduler(), 6)
    alone = torch.cat([sample(bent, noise[row:row + 1], scheduler(), 6)[0] for row in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


class TestGuide:

    def test_it_is_told_where_the_run_stands(self) -> None:
        guide, reference = Recorder(), scheduler()
        reference.set_timesteps(5)
        noise = torch.randn(SHAPE)
        sample(bent, noise, scheduler(), 5, guide)
        assert [step.index for step in guide.steps] == list(range(5))
        assert {step.total for step in guide.steps} == {5}
        assert [step.sigma for step in guide.steps] == pytest.approx(reference.sigmas[:5].tolist())
        assert all(step.alpha == 1 - step.sigma and step.prediction_type == 'velocity' for step in guide.steps)
        assert guide.steps[0].sigma == 1 and torch.equal(guide.steps[0].latents, noise)

    def test_it_is_told_the_latent_of_its_own_step(self) -> None:
        """Of a perfect prediction the latent at every step is the mixture of noise and clean latent."""
        guide, clean, noise = Recorder(), torch.randn(SHAPE), torch.randn(SHAPE)
        sample(lambda z, t: noise - clean, noise, scheduler(), 6, guide)
        for step in guide.steps:
            expected = step.alpha * clean + step.sigma * noise
            torch.testing.assert_close(step.latents, expected, atol=1e-5, rtol=0)

    def test_one_that_changes_nothing_is_bit_equal_to_none(self) -> None:
        noise = torch.randn(SHAPE)
        guided, _ = sample(bent, noise, scheduler(), 6, Recorder())
        assert torch.equal(guided, sample(bent, noise, scheduler(), 6)[0])

    def test_its_correction_is_what_the_step_uses(self) -> None:
        """A constant added to a constant velocity shifts the end by minus that constant, sigma going from 1 to 0."""
        clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
        latents, _ = sample(lambda z, t: noise - clean, noise, scheduler(), 6, Recorder(change=0.25))
        torch.testing.assert_close(latents, clean - 0.25, atol=1e-5, rtol=0)

    def test_its_records_are_kept_per_sample(self) -> None:
        guide = Recorder(records=[{'loss': 1.0}, {'loss': 2.0}])
        _, traces = sample(bent, torch.randn(SHAPE), scheduler(), 3, guide)
        assert traces == [[{'loss': 1.0}] * 3, [{'loss': 2.0}] * 3]
        assert sample(bent, torch.randn(SHAPE), scheduler(), 3, Recorder())[1] == [[], []]


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match='`num_steps` must be at least 1, got 0'):
        sample(bent, torch.randn(SHAPE), scheduler(), 0)
