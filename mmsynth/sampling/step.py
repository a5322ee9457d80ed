"""One step of a sampling loop, and how a prediction relates to the clean estimate. Pure functions.

With ``z = alpha * z0 + sigma * eps``:

- velocity (flow matching, alpha = 1 - sigma): ``v = eps - z0``, so ``z0_hat = z - sigma * v``;
- noise (DDPM): ``z0_hat = (z - sigma * eps) / alpha``.
"""
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal['velocity', 'noise']


@dataclass(frozen=True)
class SamplingStep:
    """Where a sampling loop stands when it asks for guidance.

    Attributes:
        index: Number of the step, 0 … total - 1.
        total: Steps of the run.
        latents: Noisy latents z (B, C, h, w).
        alpha: Signal level of z.
        sigma: Noise level of z, in [0, 1].
        prediction_type: What the network predicts.
    """

    index: int
    total: int
    latents: Tensor
    alpha: float
    sigma: float
    prediction_type: PredictionType = 'velocity'

    @property
    def has_clean_estimate(self) -> bool:
        """Whether there is one: a predicted noise says nothing of z0 where z holds no signal (alpha 0)."""
        return self.prediction_type == 'velocity' or self.alpha > 0

    def clean_estimate(self, prediction: Tensor) -> Tensor:
        """The clean latent z0_hat (B, C, h, w) that a prediction of the same shape stands for; differentiable."""
        if self.prediction_type == 'velocity':
            return self.latents - self.sigma * prediction
        return (self.latents - self.sigma * prediction) / self.alpha


def noise_of_velocity(velocity: Tensor, latents: Tensor, timestep: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise that a predicted velocity ``v = alpha * eps - sigma * z0`` stands for (arXiv 2202.00512, appendix D).

        eps = alpha * v + sigma * z

    Args:
        velocity: Of the network, (B, C, h, w).
        latents: z, what the network was given, (B, C, h, w).
        timestep: (B,), in [0, 1000); between two of them ``sigma / alpha`` is interpolated, as
            diffusers' samplers do.
        alphas_cumprod: alpha² of the training schedule (1000,).
    """
    ratios = (1 / alphas_cumprod.double() - 1).sqrt().to(timestep.device)
    below = timestep.long()
    above = (below + 1).clamp_max(len(ratios) - 1)
    ratio = torch.lerp(ratios[below], ratios[above], timestep.double() - below)
    alpha = (1 / (1 + ratio.square()).sqrt()).to(velocity)[:, None, None, None]
    return alpha * velocity + (1 - alpha.square()).sqrt() * latents
