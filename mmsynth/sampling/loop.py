"""Sampling over a diffusers scheduler: one loop for flow matching and for predicted noise.

Guidance enters between a prediction and the scheduler's step. A scheduler keeps its latent in a scale of its own:
DDIM's is ``z = alpha * z0 + sigma * eps`` with ``alpha² + sigma² = 1``, flow matching's the same with
``alpha = 1 - sigma``, that of Euler is ``z / alpha``. Network and guidance are always shown z.
"""
import copy
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from mmsynth.sampling.step import SamplingStep

Predict = Callable[[Tensor, Tensor], Tensor]
Trace = list[dict[str, float]]


class Guide(Protocol):
    """Corrects a prediction: ``guide(prediction, step) -> (prediction, one record per sample, or None)``."""

    def __call__(self, prediction: Tensor, step: SamplingStep) -> tuple[Tensor, Sequence[dict[str, float]] | None]:
        ...


@torch.no_grad()
def sample(predict: Predict,
           noise: Tensor,
           scheduler: SchedulerMixin,
           num_steps: int,
           guide: Guide | None = None) -> tuple[Tensor, list[Trace]]:
    """Go from noise to a clean latent.

    Args:
        predict: ``predict(latents (B, C, h, w), timestep (B,)) -> prediction`` of the latents' shape. Of flow matching
            the velocity ``eps - z0`` at ``timestep = 1000 * sigma``; else the noise, timestep in [0, 1000).
        noise: Standard normal noise (B, C, h, w).
        scheduler: Gives the timesteps and makes the steps; it is copied, its state is left alone. See
            :mod:`mmsynth.sampling.schedulers`.
        num_steps: Steps of the run, at least 1.
        guide: Called after each prediction; may correct it.

    Returns:
        The clean latents (B, C, h, w), and per sample the guide's records, one for each step it guided.

    Raises:
        ValueError: If ``num_steps`` is below 1, or not below the count of training timesteps of predicted noise.
    """
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    limit = scheduler.config.num_train_timesteps
    if num_steps < 1 or num_steps >= limit and not is_flow:
        most = '' if is_flow else f' and below the {limit} timesteps of the training schedule'
        raise ValueError(f'`num_steps` must be at least 1{most}, got {num_steps}.')
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device=noise.device)
    latents = noise if is_flow else noise * scheduler.init_noise_sigma
    traces: list[Trace] = [[] for _ in latents]
    for index, timestep in enumerate(scheduler.timesteps):
        z = latents if is_flow else scheduler.scale_model_input(latents, timestep)  # alpha * z0 + sigma * eps
        prediction = predict(z, timestep.expand(len(z)))
        if guide is not None:
            alpha, sigma = _levels(scheduler, index)
            step = SamplingStep(index, num_steps, z, alpha, sigma, 'velocity' if is_flow else 'noise')
            prediction, records = guide(prediction, step)
            for trace, record in zip(traces, records or ()):
                trace.append(record)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents, traces


def _levels(scheduler: SchedulerMixin, index: int) -> tuple[float, float]:
    """Signal and noise level (alpha, sigma) of z before step ``index``."""
    sigmas = getattr(scheduler, 'sigmas', None)
    if sigmas is None:  # DDIM
        signal = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
        return math.sqrt(signal), math.sqrt(1 - signal)
    sigma = float(sigmas[index])
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return 1 - sigma, sigma
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)  # in diffusers' others it is sigma / alpha
