"""The denoising loop against predictions whose end is known, over every scheduler that it takes."""
import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from mmsynth.sampling import (
    SAMPLERS,
    SamplingStep,
    build_sampler,
    complete_schedule,
    noise_of_velocity,
    sample,
)
from mmsynth.sampling.schedulers import STABLE_DIFFUSION_SCHEDULE

SHAPE = (2, 3, 4, 4)
# those of them that end without noise
CLEAN_END = [dict(type='DDIMScheduler', set_alpha_to_one=True), *(dict(type=name) for name in SAMPLERS[1:]),
             dict(type='DPMSolverMultistepScheduler', use_karras_sigmas=True)]
Predict = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def bent(latents: Tensor, timestep: Tensor) -> Tensor:
    """A prediction that depends on latent and time, with no meaning."""
    return torch.sin(3 * latents) + timestep[:, None, None, None] / 1000


def signal(timestep: Tensor) -> Tensor:
    """alpha² at timesteps, whole or not, by LDM's own formula: in float64, without diffusers."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)**2
    table = torch.cumprod(1 - betas, 0)
    low = timestep.long()
    ratio = ((1 - table) / table).sqrt().log()
    between = ratio[low].lerp(ratio[(low + 1).clamp(max=999)], (timestep - low).double())
    return 1 / (1 + (2 * between).exp())


def knows(clean: Tensor) -> Predict:
    """The true noise of ``alpha * clean + sigma * noise``, whatever the noise."""

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        level = signal(timestep)[:, None, None, None]
        return ((latents - level.sqrt() * clean) / (1 - level).sqrt()).float()

    return predict


class Recorder:
    """A guide that keeps what it is told and adds ``change`` to every prediction."""

    def __init__(self, change: float = 0.0, records: list[dict[str, float]] | None = None) -> None:
        self.change, self.records = change, records
        self.steps: list[SamplingStep] = []
        self.predictions: list[Tensor] = []

    def __call__(self, prediction: Tensor, step: SamplingStep) -> tuple[Tensor, list[dict[str, float]] | None]:
        self.steps.append(step)
        self.predictions.append(prediction)
        return (prediction + self.change if self.change else prediction), self.records


class TestReleasedDDIM:

    def test_fifty_steps_are_1_21_to_981(self) -> None:
        seen = []

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            assert timestep.shape == (2, ) and timestep[0] == timestep[1]
            seen.append(int(timestep[0]))
            return latents

        sample(predict, torch.randn(SHAPE), build_sampler(), 50)
        assert seen == list(range(981, 0, -20))

    @pytest.mark.parametrize('num_steps', [4, 50])
    def test_it_is_the_paper_s_formula(self, num_steps: int) -> None:
        """DDIM (arXiv 2010.02502), equation 12, without noise; as in LDM the last step ends at timestep 0."""
        noise = latents = torch.randn(SHAPE)
        times = torch.arange(num_steps) * (1000 // num_steps) + 1
        for index in reversed(range(num_steps)):
            here = signal(times[index])
            there = signal(times[index - 1] if index else torch.tensor(0))
            predicted = bent(latents, times[index].expand(2))
            clean = (latents - (1 - here).sqrt() * predicted) / here.sqrt()
            latents = (there.sqrt() * clean + (1 - there).sqrt() * predicted).float()
        ours, _ = sample(bent, noise, build_sampler(), num_steps)
        torch.testing.assert_close(ours, latents, atol=1e-3, rtol=1e-4)  # 50 steps of float32

    def test_true_noise_ends_at_the_noise_level_of_timestep_0(self) -> None:
        clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
        start, last = signal(torch.tensor(981)), signal(torch.tensor(0))
        begin = (start.sqrt() * clean + (1 - start).sqrt() * noise).float()
        latents, _ = sample(knows(clean), begin, build_sampler(), 50)
        expected = (last.sqrt() * clean + (1 - last).sqrt() * noise).float()
        torch.testing.assert_close(latents, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize('sampler', CLEAN_END, ids=str)
@pytest.mark.parametrize('num_steps', [1, 2, 7, 20])
def test_a_perfect_prediction_arrives_at_the_clean_latent(sampler: dict, num_steps: int) -> None:
    clean = torch.randn(SHAPE)
    latents, _ = sample(knows(clean), torch.randn(SHAPE), build_sampler(sampler), num_steps)
    torch.testing.assert_close(latents, clean, atol=5e-3, rtol=0)  # their tables of noise levels are float32


@pytest.mark.parametrize('name', SAMPLERS)
class TestEverySampler:

    def test_it_is_left_as_it_was(self, name: str) -> None:
        """Multistep samplers keep earlier predictions: a second run must not see those of the first."""
        own, noise = build_sampler(dict(type=name)), torch.randn(SHAPE)
        before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in vars(own).items()}
        first, _ = sample(bent, noise, own, 5)
        assert before.keys() == vars(own).keys()
        for key, value in before.items():
            after = vars(own)[key]
            assert torch.equal(value, after) if isinstance(value, Tensor) else value == after, key
        sample(bent, torch.randn(SHAPE), own, 9)
        assert torch.equal(sample(bent, noise, own, 5)[0], first)

    def test_two_samples_are_twice_one_sample(self, name: str) -> None:
        noise, own = torch.randn(SHAPE), build_sampler(dict(type=name))
        together, _ = sample(bent, noise, own, 6)
        alone = torch.cat([sample(bent, noise[row:row + 1], own, 6)[0] for row in range(2)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    def test_it_draws_no_noise_of_its_own(self, name: str) -> None:
        noise, own = torch.randn(SHAPE), build_sampler(dict(type=name))
        first, _ = sample(bent, noise, own, 6)
        torch.manual_seed(99)
        assert torch.equal(sample(bent, noise, own, 6)[0], first)

    def test_the_noise_given_is_not_written_to_and_gradients_are_off(self, name: str) -> None:
        noise = torch.randn(SHAPE, requires_grad=True)
        before = noise.detach().clone()
        latents, _ = sample(bent, noise, build_sampler(dict(type=name)), 3)
        assert torch.equal(noise, before) and not latents.requires_grad

    def test_the_guide_is_told_levels_that_belong_to_the_latent(self, name: str) -> None:
        """Of a perfect prediction the clean estimate is the clean latent at every step."""
        guide, clean = Recorder(), torch.randn(SHAPE)
        sample(knows(clean), torch.randn(SHAPE), build_sampler(dict(type=name)), 6, guide)
        assert [(step.index, step.total, step.prediction_type) for step in guide.steps] == [
            (index, 6, 'noise') for index in range(6)]
        sigmas = [step.sigma for step in guide.steps]
        assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] > 0.9
        for step, prediction in zip(guide.steps, guide.predictions):
            assert math.hypot(step.alpha, step.sigma) == pytest.approx(1, abs=1e-6)
            torch.testing.assert_close(step.clean_estimate(prediction), clean, atol=2e-2, rtol=0)

    def test_a_guide_that_changes_nothing_is_bit_equal_to_none(self, name: str) -> None:
        noise, own = torch.randn(SHAPE), build_sampler(dict(type=name))
        guided, _ = sample(bent, noise, own, 6, Recorder())
        assert torch.equal(guided, sample(bent, noise, own, 6)[0])

    def test_a_correction_is_what_the_step_uses(self, name: str) -> None:
        noise, own = torch.randn(SHAPE), build_sampler(dict(type=name))
        guided, _ = sample(bent, noise, own, 6, Recorder(change=0.25))
        shifted, _ = sample(lambda z, t: bent(z, t) + 0.25, noise, own, 6)
        assert torch.equal(guided, shifted) and not torch.equal(guided, sample(bent, noise, own, 6)[0])


def test_records_are_kept_per_sample() -> None:
    guide = Recorder(records=[{'loss': 1.0}, {'loss': 2.0}])
    _, traces = sample(bent, torch.randn(SHAPE), build_sampler(), 3, guide)
    assert traces == [[{'loss': 1.0}] * 3, [{'loss': 2.0}] * 3]
    assert sample(bent, torch.randn(SHAPE), build_sampler(), 3, Recorder())[1] == [[], []]


class TestSettings:

    def test_the_default_is_stable_diffusion_s(self) -> None:
        config = build_sampler().config
        released = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', clip_sample=False,
            set_alpha_to_one=False, steps_offset=1).config
        assert {key: config[key] for key in released if key[0] != '_'} \
            == {key: value for key, value in released.items() if key[0] != '_'}

    def test_the_training_schedule_is_the_sampler_s(self) -> None:
        own = build_sampler(dict(type='UniPCMultistepScheduler', solver_order=1), dict(beta_end=0.02))
        assert (own.config.beta_end, own.config.beta_start, own.config.solver_order) == (0.02, 0.00085, 1)
        assert complete_schedule(dict(beta_end=0.02))['beta_schedule'] == 'scaled_linear'

    @pytest.mark.parametrize('sampler, message', [
        (dict(type='EulerAncestralDiscreteScheduler'), 'ancestral, SDE.* would make a sample depend on its batch'),
        (dict(type='DDPMScheduler'), "must be one of DDIMScheduler, .*, got 'DDPMScheduler'"),
        (dict(num_steps=3), '`sampler.type` must be one of .*, got None'),
        (dict(type='DDIMScheduler', beta_end=0.1), '`sampler` has beta_end, .*; set it in `scheduler`'),
        (dict(type='DDIMScheduler', prediction_type='v_prediction'), "must leave prediction_type='epsilon'"),
        (dict(type='DDIMScheduler', clip_sample=True), 'must leave clip_sample=False'),
        (dict(type='UniPCMultistepScheduler', rescale_betas_zero_snr=True), 'must leave rescale_betas_zero_snr=False'),
        (dict(type='DPMSolverMultistepScheduler', algorithm_type='sde-dpmsolver++'), "; use 'dpmsolver\\+\\+'"),
    ])
    def test_samplers_that_cannot_be(self, sampler: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_sampler(sampler)

    def test_a_misspelt_setting_is_named(self) -> None:
        with pytest.raises(TypeError, match='step_offset'):
            build_sampler(dict(type='DDIMScheduler', step_offset=1))
        with pytest.raises(ValueError, match='`scheduler`.* got beta_stop'):
            build_sampler(None, dict(beta_stop=1))

    @pytest.mark.parametrize('num_steps', [0, 1000])
    def test_step_counts_that_cannot_be(self, num_steps: int) -> None:
        with pytest.raises(ValueError, match=f'`num_steps`.* 1000 .* got {num_steps}'):
            sample(bent, torch.randn(SHAPE), build_sampler(), num_steps)


class TestVelocity:

    def test_it_stands_for_its_noise(self) -> None:
        clean, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
        timestep = torch.tensor([0, 400, 999])
        schedule = DDPMScheduler(**STABLE_DIFFUSION_SCHEDULE)
        latents, velocity = (make(clean, noise, timestep) for make in (schedule.add_noise, schedule.get_velocity))
        torch.testing.assert_close(noise_of_velocity(velocity, latents, timestep, schedule.alphas_cumprod), noise)

    def test_between_timesteps_the_level_is_between(self) -> None:
        alphas = build_sampler().alphas_cumprod
        levels = [float(noise_of_velocity(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([timestep]),
                                          alphas)) for timestep in (500., 500.5, 501.)]
        assert levels[0] > levels[1] > levels[2]
        assert levels[1] == pytest.approx((levels[0] + levels[2]) / 2, rel=1e-4)
