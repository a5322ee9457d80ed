"""Sampling of a flow-matching model over a diffusers scheduler; guidance enters between prediction and step."""
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmsynth.sampling.step import SamplingStep

Predict = Callable[[Tensor, Tensor], Tensor]
Trace = list[dict[str, float]]


class Guide(Protocol):
    """Corrects a prediction: ``guide(prediction, step) -> (prediction, one record per sample, or None)``."""

    def __call__(self, prediction: Tensor, step: SamplingStep) -> tuple[Tensor, Sequence[dict[str, float]] | None]:
        ...


def build_flow_scheduler(settings: Mapping[str, Any] | None = None) -> FlowMatchEulerDiscreteScheduler:
    """Build the diffusers scheduler of a flow-matching model.

    Args:
        settings: Of a ``FlowMatchEulerDiscreteScheduler``; ``shift`` is 3, as in SD3, where it is not given.

    Raises:
        ValueError: If a setting makes sampling random, or asks for what sampling does not give.
        TypeError: If the class does not know a setting.
    """
    settings = dict(shift=3.0) | dict(settings or {})
    if settings.get('stochastic_sampling'):
        raise ValueError('`scheduler.stochastic_sampling` draws noise in every step, so that a sample would depend on '
                         'its batch; leave it out.')
    if settings.get('use_dynamic_shifting'):
        raise ValueError('`scheduler.use_dynamic_shifting` needs a shift for every image size, which this sampler does '
                         'not give; set a fixed `shift`.')
    return FlowMatchEulerDiscreteScheduler(**settings)


@torch.no_grad()
def sample_flow_match(predict: Predict,
                      latents: Tensor,
                      scheduler: FlowMatchEulerDiscreteScheduler,
                      num_steps: int,
                      guide: Guide | None = None) -> tuple[Tensor, list[Trace]]:
    """Integrate ``dz/dsigma = v`` from noise to a clean latent.

    Args:
        predict: ``predict(latents (B, C, h, w), timestep (B,)) -> velocity``, timestep = 1000 * sigma.
        latents: Standard normal noise (B, C, h, w).
        scheduler: Gives the sigmas and makes the steps; it is copied, its state is left alone.
        num_steps: Steps of the run, at least 1.
        guide: Corrects the velocity of each step.

    Returns:
        The clean latents (B, C, h, w), and per sample the guide's records, one for each step it guided.

    Raises:
        ValueError: If ``num_steps`` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f'`num_steps` must be at least 1, got {num_steps}.')
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device=latents.device)
    traces: list[Trace] = [[] for _ in latents]
    for index, timestep in enumerate(scheduler.timesteps):
        velocity = predict(latents, timestep.expand(len(latents)))
        if guide is not None:
            sigma = float(scheduler.sigmas[index])
            step = SamplingStep(index, num_steps, latents, alpha=1 - sigma, sigma=sigma)
            velocity, records = guide(velocity, step)
            for trace, record in zip(traces, records or ()):
                trace.append(record)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents, traces
