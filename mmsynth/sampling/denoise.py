"""Sampling of a model that predicts noise, over a diffusers scheduler; guidance enters between prediction and step.

A scheduler keeps its latent in a scale of its own: DDIM's is ``z = alpha * z0 + sigma * eps`` with
``alpha² + sigma² = 1``, that of Euler is ``z / alpha``. The network and the guidance are always shown the first.
"""
import copy
import math
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from mmsynth.sampling.flow_match import Guide, Predict, Trace
from mmsynth.sampling.step import SamplingStep

# Of the schedulers for predicted noise those that draw none of their own and ask for one prediction per step.
SAMPLERS = ('DDIMScheduler', 'DPMSolverMultistepScheduler', 'UniPCMultistepScheduler', 'EulerDiscreteScheduler')
# SD1.5's training schedule (LDM, arXiv 2112.10752)
STABLE_DIFFUSION_SCHEDULE = dict(
    beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)
# DDIM as LDM has it: timesteps 1, 21, …, 981 for 50 steps, the last step ends at the noise level of timestep 0
_LDM_DDIM = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing='leading')
# What a predicted noise and a latent without bounds rule out, by option: the values that are left
_FIXED = dict(prediction_type='epsilon', clip_sample=False, thresholding=False, rescale_betas_zero_snr=False,
              use_flow_sigmas=False)


def build_sampler(sampler: Mapping[str, Any] | None = None,
                  schedule: Mapping[str, Any] | None = None) -> SchedulerMixin:
    """Build the diffusers scheduler that sampling goes over.

    Args:
        sampler: ``type``, one of :data:`SAMPLERS`, and that class's own settings; DDIM as in LDM by default.
        schedule: The training schedule, see :func:`complete_schedule`.

    Raises:
        ValueError: If the type is not one of them, or a setting contradicts the training schedule, makes the sampler
            random, or does not go with predicted noise.
        TypeError: If the class does not know a setting.
    """
    settings = dict(sampler or dict(type='DDIMScheduler'))
    schedule = complete_schedule(schedule)
    name = settings.pop('type', None)
    if name not in SAMPLERS:
        raise ValueError(f'`sampler.type` must be one of {", ".join(SAMPLERS)}, got {name!r}: samplers that draw noise '
                         'in every step (ancestral, SDE) would make a sample depend on its batch.')
    _check_settings(settings)
    if name == 'DDIMScheduler':
        settings = _LDM_DDIM | settings
    return getattr(diffusers, name)(**schedule, **settings)


@torch.no_grad()
def sample_denoising(predict: Predict,
                     noise: Tensor,
                     scheduler: SchedulerMixin,
                     num_steps: int,
                     guide: Guide | None = None) -> tuple[Tensor, list[Trace]]:
    """Denoise step by step, from noise to a clean latent.

    Args:
        predict: ``predict(latents (B, C, h, w), timestep (B,)) -> noise``, timestep in [0, 1000).
        noise: Standard normal noise (B, C, h, w).
        scheduler: One of :func:`build_sampler`: gives the timesteps and makes the steps; it is copied, its state is
            left alone.
        num_steps: Steps of the run, at least 1.
        guide: Corrects the predicted noise of each step.

    Returns:
        The clean latents (B, C, h, w), and per sample the guide's records, one for each step it guided.

    Raises:
        ValueError: If ``num_steps`` is below 1, or not below the count of training timesteps.
    """
    limit = scheduler.config.num_train_timesteps
    if not 1 <= num_steps < limit:
        raise ValueError(f'`num_steps` must be at least 1 and below the {limit} timesteps of the training schedule, '
                         f'got {num_steps}.')
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    traces: list[Trace] = [[] for _ in latents]
    for index, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)  # alpha * z0 + sigma * eps
        predicted = predict(scaled, timestep.expand(len(latents)))
        if guide is not None:
            alpha, sigma = _levels(scheduler, index)
            step = SamplingStep(index, num_steps, scaled, alpha=alpha, sigma=sigma, prediction_type='noise')
            predicted, records = guide(predicted, step)
            for trace, record in zip(traces, records or ()):
                trace.append(record)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents, traces


def _levels(scheduler: SchedulerMixin, index: int) -> tuple[float, float]:
    """Signal and noise level (alpha, sigma) before step ``index``, ``alpha² + sigma² = 1``."""
    sigmas = getattr(scheduler, 'sigmas', None)
    if sigmas is None:  # DDIM
        signal = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
        return math.sqrt(signal), math.sqrt(1 - signal)
    ratio = float(sigmas[index])  # sigma / alpha, in diffusers' other schedulers
    return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)


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


def complete_schedule(schedule: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a training schedule, Stable Diffusion's where they are not given.

    Args:
        schedule: ``beta_schedule``, ``beta_start``, ``beta_end``, ``num_train_timesteps`` of a ``DDPMScheduler``.

    Raises:
        ValueError: If there is another setting.
    """
    unknown = (schedule or {}).keys() - STABLE_DIFFUSION_SCHEDULE.keys()
    if unknown:
        raise ValueError(f'`scheduler` takes {", ".join(STABLE_DIFFUSION_SCHEDULE)}, got {", ".join(sorted(unknown))}; '
                         'settings of sampling belong in `sampler`.')
    return STABLE_DIFFUSION_SCHEDULE | dict(schedule or {})


def _check_settings(settings: Mapping[str, Any]) -> None:
    repeated = settings.keys() & {*STABLE_DIFFUSION_SCHEDULE, 'trained_betas'}
    if repeated:
        raise ValueError(f'`sampler` has {", ".join(sorted(repeated))}, which it takes from the training schedule; set '
                         'it in `scheduler`.')
    wrong = {key: settings[key] for key in settings.keys() & _FIXED.keys() if settings[key] != _FIXED[key]}
    if wrong:
        raise ValueError(f'`sampler` must leave {", ".join(f"{key}={_FIXED[key]!r}" for key in sorted(wrong))}, got '
                         f'{wrong}: the network predicts noise, and its latents have no bounds.')
    if str(settings.get('algorithm_type', '')).startswith('sde'):
        raise ValueError(f"`sampler.algorithm_type` {settings['algorithm_type']!r} draws noise in every step, so that "
                         "a sample would depend on its batch; use 'dpmsolver++'.")
