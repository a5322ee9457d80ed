"""Sampling over a diffusers scheduler: one loop for flow matching and for predicted noise.

Guidance enters between a prediction and the scheduler's step. A scheduler keeps its latent in a scale of its own:
DDIM's is ``z = alpha * z0 + sigma * eps`` with ``alpha² + sigma² = 1``, flow matching's the same with
``alpha = 1 - sigma``, that of Euler is ``z / alpha``. Network and guidance are always shown z.

Heun's method predicts twice per step. It is guided once: the correction of the first prediction is added to the second
as well, so that a step is corrected by as much as Euler's, and for the price of one.
"""
import copy
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from mmsynth.sampling.step import SamplingStep

Predict = Callable[[Tensor, Tensor], Tensor]
StepEnd = Callable[[int, Tensor, Tensor], Tensor]
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
           guide: Guide | None = None,
           *,
           recurrence: int = 1,
           draw_noise: Callable[[int, int], Tensor] | None = None,
           on_step_end: StepEnd | None = None) -> tuple[Tensor, list[Trace]]:
    """Go from noise to a clean latent.

    Args:
        predict: ``predict(latents (B, C, h, w), timestep (B,)) -> prediction`` of the latents' shape. Of flow matching
            the velocity ``eps - z0`` at ``timestep = 1000 * sigma``; else the noise, timestep in [0, 1000).
        noise: Standard normal noise (B, C, h, w).
        scheduler: Gives the timesteps and makes the steps; it is copied, its state is left alone. See
            :mod:`mmsynth.sampling.schedulers`.
        num_steps: Steps of the run, at least 1.
        guide: Called once per step, after its (first) prediction; may correct it.
        recurrence: Times that each guided step is taken; before each repetition the latent is noised again to the level
            that it had. A step from pure noise is taken once.
        draw_noise: ``draw_noise(step index, repetition) -> noise (B, C, h, w)``; needed for a recurrence above 1.
        on_step_end: ``on_step_end(step index, timestep (), latents) -> latents``, called after each step with the
            latents in the scheduler's own scale; what it returns is gone on with.

    Returns:
        The clean latents (B, C, h, w), and per sample the guide's records, one for each step it guided.

    Raises:
        ValueError: If ``num_steps`` is below 1, or not below the count of training timesteps of predicted noise.
    """
    is_flow = predicts_velocity(scheduler)
    limit = scheduler.config.num_train_timesteps
    if num_steps < 1 or num_steps >= limit and not is_flow:
        most = '' if is_flow else f' and below the {limit} timesteps of the training schedule'
        raise ValueError(f'`num_steps` must be at least 1{most}, got {num_steps}.')
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device=noise.device)
    if is_flow:
        scheduler.set_begin_index(0)  # DPM-Solver's timesteps are cut to integers, among which it may miss the first
    if scheduler.config.get('use_flow_sigmas'):
        scheduler.sigmas[0] = 1.0  # of noise; DPM-Solver's table begins at 0.999, an error that no step count removes
    latents = noise if is_flow else noise * scheduler.init_noise_sigma
    traces: list[Trace] = [[] for _ in latents]
    for index in range(num_steps):
        timestep = _timestep(scheduler, index)
        for repetition in range(recurrence):
            z = latents if is_flow else scheduler.scale_model_input(latents, timestep)  # alpha * z0 + sigma * eps
            own = prediction = predict(z, timestep.expand(len(z)))
            records = None
            if guide is not None:
                alpha, sigma = _levels(scheduler, index)
                step = SamplingStep(index, num_steps, z, alpha, sigma, 'velocity' if is_flow else 'noise')
                prediction, records = guide(own, step)
                for trace, record in zip(traces, records or ()):
                    trace.append(record)
            if records is None or alpha == 0 or repetition == recurrence - 1:
                break
            assert draw_noise is not None
            trial = _step(copy.deepcopy(scheduler), predict, index, latents, own, prediction)
            latents = _noise_again(trial, draw_noise(index, repetition), scheduler, index)
        latents = _step(scheduler, predict, index, latents, own, prediction)
        if on_step_end is not None:
            latents = on_step_end(index, timestep, latents)
    return latents, traces


def predicts_velocity(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler is one of flow matching, whose network predicts a velocity; of predicted noise otherwise."""
    return isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)) \
        or bool(scheduler.config.get('use_flow_sigmas'))


def _step(scheduler: SchedulerMixin, predict: Predict, index: int, latents: Tensor, own: Tensor,
          prediction: Tensor) -> Tensor:
    """The latents after step ``index``, by the network's ``own`` prediction and what guidance made of it."""
    timestep = _timestep(scheduler, index)
    stepped = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    if not isinstance(scheduler, FlowMatchHeunDiscreteScheduler) or index == scheduler.num_inference_steps - 1:
        return stepped
    timestep = _timestep(scheduler, index + 1)
    second = predict(stepped, timestep.expand(len(stepped)))
    if prediction is not own:
        second = second + (prediction - own)
    return scheduler.step(second, timestep, stepped, return_dict=False)[0]


def _timestep(scheduler: SchedulerMixin, index: int) -> Tensor:
    """What the network is told of step ``index``: 1000 * sigma of flow matching, else the training timestep; ()."""
    if predicts_velocity(scheduler):
        return 1000 * scheduler.sigmas[_place(scheduler, index)].to(scheduler.timesteps.device)
    return scheduler.timesteps[index]


def _place(scheduler: SchedulerMixin, index: int) -> int:
    """Where the noise level before step ``index`` stands in the scheduler's table; Heun's has all but two twice."""
    if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        return min(2 * index, len(scheduler.sigmas) - 1)
    return index


def _noise_again(latents: Tensor, noise: Tensor, scheduler: SchedulerMixin, index: int) -> Tensor:
    """Bring what step ``index`` led to back to the noise level before it: of the forward process z_s → z_t, t > s."""
    (alpha, sigma), (next_alpha, next_sigma) = _levels(scheduler, index), _levels(scheduler, index + 1)
    ratio = alpha / next_alpha
    spread = math.sqrt(max(sigma**2 - (ratio * next_sigma)**2, 0.0))
    if isinstance(scheduler, EulerDiscreteScheduler):  # its latents are z / alpha
        return latents + spread / alpha * noise
    return ratio * latents + spread * noise


def _levels(scheduler: SchedulerMixin, index: int) -> tuple[float, float]:
    """Signal and noise level (alpha, sigma) of z before step ``index``; behind the last step, of what it led to."""
    sigmas = getattr(scheduler, 'sigmas', None)
    if sigmas is None:  # DDIM
        signal = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])]
                       if index < len(scheduler.timesteps) else scheduler.final_alpha_cumprod)
        return math.sqrt(signal), math.sqrt(1 - signal)
    sigma = float(sigmas[_place(scheduler, index)])
    if predicts_velocity(scheduler):
        return 1 - sigma, sigma
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)  # in diffusers' others it is sigma / alpha
