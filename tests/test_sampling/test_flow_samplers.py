"""Flow matching by Euler, Heun and DPM-Solver++, against the flow of Gaussian data, which is known."""
import math
from collections.abc import Sequence

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmsynth.sampling import FLOW_SAMPLERS, SamplingStep, build_flow_sampler, build_flow_scheduler, sample
from mmsynth.sampling.schedulers import build_sampler

EULER, HEUN, DPM = FLOW_SAMPLERS
SHAPE = (2, 3, 4, 4)
MEAN, STD = 0.7, torch.tensor([0.2, 0.5, 1.5])[:, None, None]  # of the data, per channel


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def gaussian(latents: Tensor, timestep: Tensor) -> Tensor:
    """The velocity E[eps - z0 | z] of data N(MEAN, STD²): of ``z = (1 - sigma) z0 + sigma eps``."""
    sigma = timestep[:, None, None, None].double() / 1000
    variance = (1 - sigma)**2 * STD**2 + sigma**2
    slope = (sigma - (1 - sigma) * STD**2) / variance
    return (slope * (latents - (1 - sigma) * MEAN) - MEAN).to(latents)


def exact(noise: Tensor) -> Tensor:
    """Where that flow takes noise: it keeps each value's number of standard deviations."""
    return MEAN + STD * noise


def error(sampler: dict, num_steps: int, shift: float = 1.0) -> float:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    own = build_flow_sampler(sampler, dict(shift=shift))
    return float((sample(gaussian, noise, own, num_steps)[0] - exact(noise)).square().mean().sqrt())


class Recorder:
    """A guide that keeps what it is told and adds ``change`` to every prediction."""

    def __init__(self, change: float = 0.0, records: Sequence[dict[str, float]] | None = None) -> None:
        self.change, self.records = change, records
        self.steps: list[SamplingStep] = []
        self.predictions: list[Tensor] = []

    def __call__(self, prediction: Tensor, step: SamplingStep) -> tuple[Tensor, Sequence[dict[str, float]] | None]:
        self.steps.append(step)
        self.predictions.append(prediction)
        return (prediction + self.change if self.change else prediction), self.records


class TestGaussianData:

    @pytest.mark.parametrize('sampler, steps, least, most', [
        (dict(type=EULER), (20, 40), 0.9, 1.1),
        (dict(type=HEUN), (20, 40), 1.9, 2.1),
        (dict(type=DPM, solver_order=1), (80, 160), 0.9, 1.1),
        # at both ends of the run its steps in log-SNR stay wide however many they are: second order but for a logarithm
        (dict(type=DPM), (160, 320), 1.6, 2.1),
        (dict(type=DPM, solver_type='heun'), (160, 320), 1.6, 2.1)], ids=str)
    def test_it_converges_at_its_order(self, sampler: dict, steps: tuple[int, int], least: float, most: float) -> None:
        """With twice the steps the error is 2 ** order times smaller."""
        first, second = (error(sampler, num_steps) for num_steps in steps)
        assert least < math.log2(first / second) < most, (first, second)

    @pytest.mark.parametrize('shift', [1.0, 3.0])
    def test_half_of_the_passes_are_enough(self, shift: float) -> None:
        """Heun's and DPM-Solver++'s steps are worth more than Euler's, at the same number of passes."""
        euler = error(dict(type=EULER), 24, shift)
        assert error(dict(type=HEUN), 6, shift) < euler  # 11 passes
        assert error(dict(type=DPM), 12, shift) < euler

    def test_the_network_is_told_a_thousand_sigma(self) -> None:
        """DPM-Solver++'s own timesteps are cut to integers."""
        seen = []

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            seen.append(float(timestep[0]))
            return gaussian(latents, timestep)

        own = build_flow_sampler(dict(type=DPM))
        sample(predict, torch.randn(SHAPE), own, 7)
        own.set_timesteps(7)
        assert seen == pytest.approx([1000, *(1000 * float(sigma) for sigma in own.sigmas[1:7])])
        assert any(value != round(value) for value in seen)

    def test_more_steps_than_timesteps_apart(self) -> None:
        """At 900 steps the first timesteps of DPM-Solver++ are the same integer."""
        assert error(dict(type=DPM), 900, shift=3.0) < 1e-3


def test_the_default_is_the_scheduler_itself() -> None:
    own, scheduler = build_flow_sampler(None, dict(shift=2.0)), build_flow_scheduler(dict(shift=2.0))
    assert type(own) is FlowMatchEulerDiscreteScheduler and own.config == scheduler.config
    assert build_flow_sampler(dict(type=DPM), dict(shift=2.0)).config.flow_shift == 2.0
    assert build_flow_sampler(dict(type=HEUN)).config.shift == 3.0


@pytest.mark.parametrize('name, passes', [(EULER, 5), (HEUN, 9), (DPM, 5)])
class TestEverySampler:

    def test_passes_of_the_network(self, name: str, passes: int) -> None:
        seen = []

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            assert timestep.shape == (2, ) and timestep[0] == timestep[1]
            seen.append(float(timestep[0]))
            return gaussian(latents, timestep)

        sample(predict, torch.randn(SHAPE), build_flow_sampler(dict(type=name)), 5)
        assert len(seen) == passes and seen == sorted(seen, reverse=True) and seen[0] == 1000

    def test_time_is_a_thousand_sigma_whatever_the_training_schedule(self, name: str, passes: int) -> None:
        """As the training tells the network."""
        noise, clean = torch.randn(SHAPE), torch.randn(SHAPE)
        own = build_flow_sampler(dict(type=name), dict(num_train_timesteps=500))
        latents, _ = sample(lambda z, t: (z - clean) / (t / 1000)[:, None, None, None], noise, own, 4)
        torch.testing.assert_close(latents, clean, atol=1e-4, rtol=0)

    @pytest.mark.parametrize('num_steps', [1, 2, 7])
    def test_a_perfect_prediction_arrives_at_the_clean_latent(self, name: str, passes: int, num_steps: int) -> None:
        clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
        latents, _ = sample(lambda z, t: (z - clean) / (t / 1000)[:, None, None, None], noise,
                            build_flow_sampler(dict(type=name)), num_steps)
        torch.testing.assert_close(latents, clean, atol=1e-4, rtol=0)

    def test_two_samples_are_twice_one_sample(self, name: str, passes: int) -> None:
        noise, own = torch.randn(SHAPE), build_flow_sampler(dict(type=name))
        together, _ = sample(gaussian, noise, own, 6)
        alone = torch.cat([sample(gaussian, noise[row:row + 1], own, 6)[0] for row in range(2)])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)

    def test_it_is_left_as_it_was_and_draws_nothing(self, name: str, passes: int) -> None:
        noise, own = torch.randn(SHAPE), build_flow_sampler(dict(type=name))
        first, _ = sample(gaussian, noise, own, 5)
        torch.manual_seed(99)
        sample(gaussian, torch.randn(SHAPE), own, 9)
        assert torch.equal(sample(gaussian, noise, own, 5)[0], first)

    def test_the_guide_is_told_levels_that_belong_to_the_latent(self, name: str, passes: int) -> None:
        """Once per step; of a perfect prediction the clean estimate is the clean latent at every step."""
        guide, clean = Recorder(), torch.randn(SHAPE)
        sample(lambda z, t: (z - clean) / (t / 1000)[:, None, None, None], torch.randn(SHAPE),
               build_flow_sampler(dict(type=name)), 5, guide)
        assert [(step.index, step.total, step.prediction_type) for step in guide.steps] == [
            (index, 5, 'velocity') for index in range(5)]
        sigmas = [step.sigma for step in guide.steps]
        assert sigmas == sorted(set(sigmas), reverse=True) and all(step.alpha == 1 - step.sigma for step in guide.steps)
        for step, prediction in zip(guide.steps, guide.predictions):
            torch.testing.assert_close(step.clean_estimate(prediction), clean, atol=1e-4, rtol=0)

    def test_a_guide_that_changes_nothing_is_bit_equal_to_none(self, name: str, passes: int) -> None:
        noise, own = torch.randn(SHAPE), build_flow_sampler(dict(type=name))
        guided, _ = sample(gaussian, noise, own, 6, Recorder())
        assert torch.equal(guided, sample(gaussian, noise, own, 6)[0])

    def test_a_correction_counts_in_full(self, name: str, passes: int) -> None:
        """A constant added to a constant velocity shifts the end by minus that constant, sigma going from 1 to 0."""
        clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
        latents, _ = sample(lambda z, t: noise - clean, noise, build_flow_sampler(dict(type=name)), 6,
                            Recorder(change=0.25))
        torch.testing.assert_close(latents, clean - 0.25, atol=1e-4, rtol=0)

    def test_records_come_once_per_step(self, name: str, passes: int) -> None:
        guide = Recorder(records=[{'loss': 1.0}, {'loss': 2.0}])
        _, traces = sample(gaussian, torch.randn(SHAPE), build_flow_sampler(dict(type=name)), 3, guide)
        assert traces == [[{'loss': 1.0}] * 3, [{'loss': 2.0}] * 3]


@pytest.mark.parametrize('sampler, scheduler, message', [
    (dict(type='FlowMatchLCMScheduler'), None, '`sampler.type` must be one of .*, got .FlowMatchLCMScheduler'),
    (dict(num_steps=3), None, '`sampler.type` must be one of .*, got None'),
    (dict(type=DPM, use_karras_sigmas=True), None, '`sampler`: .* takes solver_order, .* got use_karras_sigmas'),
    (dict(type=DPM, algorithm_type='sde-dpmsolver++'), None, 'got algorithm_type'),
    (dict(type=HEUN, shift=2.0), None, '`sampler`: .* takes no settings here, got shift'),
    (dict(type=DPM), dict(use_karras_sigmas=True), '`scheduler`: use_karras_sigmas has no effect on `sampler.type`'),
])
def test_samplers_that_cannot_be(sampler: dict, scheduler: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_flow_sampler(sampler, scheduler)


@pytest.mark.parametrize('name', ['DPMSolverMultistepScheduler', 'UniPCMultistepScheduler'])
def test_of_predicted_noise_twenty_steps_are_closer_than_a_hundred_of_ddim(name: str) -> None:
    """The same data under Stable Diffusion's schedule, which TISynth samples over."""
    table = build_sampler().alphas_cumprod.double()
    noise = torch.randn(SHAPE)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        """E[eps | z] of ``z = alpha z0 + sigma eps``."""
        signal = table[timestep.long()][:, None, None, None]
        return ((1 - signal).sqrt() * (latents - signal.sqrt() * MEAN) / (signal * STD**2 + 1 - signal)).float()

    def error(settings: dict, num_steps: int) -> float:
        own = build_sampler(settings)
        latents, _ = sample(predict, noise, own, num_steps)
        own.set_timesteps(num_steps)
        start = table[int(own.timesteps[0])]
        expected = MEAN + STD * (noise - start.sqrt() * MEAN) / (start * STD**2 + 1 - start).sqrt()
        return float((latents - expected).square().mean().sqrt())

    assert error(dict(type=name, use_karras_sigmas=True), 20) < error(
        dict(type='DDIMScheduler', set_alpha_to_one=True), 100)
