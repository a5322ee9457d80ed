"""Prediction and clean estimate, in closed form."""
import math

import pytest
import torch

from mmsynth.sampling import SamplingStep

SHAPE = (2, 3, 4, 4)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize('sigma', [1.0, 0.7, 0.01])
def test_the_true_velocity_gives_the_clean_latent(sigma: float) -> None:
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    step = SamplingStep(0, 1, (1 - sigma) * clean + sigma * noise, alpha=1 - sigma, sigma=sigma)
    torch.testing.assert_close(step.clean_estimate(noise - clean), clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize('sigma', [0.9, 0.5, 0.01])
def test_the_true_noise_gives_the_clean_latent(sigma: float) -> None:
    clean, noise, alpha = torch.randn(SHAPE), torch.randn(SHAPE), math.sqrt(1 - sigma**2)
    step = SamplingStep(3, 9, alpha * clean + sigma * noise, alpha=alpha, sigma=sigma, prediction_type='noise')
    torch.testing.assert_close(step.clean_estimate(noise), clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize('prediction_type, slope', [('velocity', -0.6), ('noise', -0.6 / 0.8)])
def test_the_slope_is_that_of_the_formula(prediction_type: str, slope: float) -> None:
    prediction = torch.zeros(SHAPE, requires_grad=True)
    step = SamplingStep(0, 1, torch.randn(SHAPE), alpha=0.8, sigma=0.6, prediction_type=prediction_type)
    step.clean_estimate(prediction).sum().backward()
    torch.testing.assert_close(prediction.grad, torch.full(SHAPE, slope))


def test_without_noise_the_latent_is_its_own_estimate() -> None:
    latents = torch.randn(SHAPE)
    assert torch.equal(SamplingStep(0, 1, latents, alpha=1.0, sigma=0.0).clean_estimate(torch.randn(SHAPE)), latents)


@pytest.mark.parametrize('prediction_type, alpha, expected', [
    ('velocity', 0.0, True), ('velocity', 0.5, True), ('noise', 0.5, True), ('noise', 1e-6, True), ('noise', 0.0, False)
])
def test_only_a_noise_without_signal_has_no_clean_estimate(prediction_type: str, alpha: float, expected: bool) -> None:
    step = SamplingStep(0, 1, torch.randn(SHAPE), alpha=alpha, sigma=0.6, prediction_type=prediction_type)
    assert step.has_clean_estimate is expected
    if expected:
        assert step.clean_estimate(torch.randn(SHAPE)).isfinite().all()
