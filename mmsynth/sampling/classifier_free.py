"""Classifier-free guidance (arXiv 2207.12598), both conditions in one pass of the network."""
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from mmsynth.sampling.loop import Predict

Condition = TypeVar('Condition')


def classifier_free(network: Callable[[Tensor, Tensor, Condition], Tensor], condition: Condition,
                    negative: Condition | None, scale: float) -> Predict:
    """Make the prediction that a sampler asks for: ``negative + scale * (positive - negative)``.

    Args:
        network: ``network(latents (B, C, h, w), timestep (B,), condition) -> prediction (B, C, h, w)``.
        condition: A dataclass of tensors (B, …).
        negative: The same with what is guided away from; None for no guidance, one pass of B.
        scale: 1 is the plain prediction.
    """
    if negative is None:
        return lambda latents, timestep: network(latents, timestep, condition)
    both = type(condition)(*(torch.cat([getattr(negative, field.name), getattr(condition, field.name)])
                             for field in fields(condition)))

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        away, towards = network(latents.repeat(2, 1, 1, 1), timestep.repeat(2), both).chunk(2)
        return away + scale * (towards - away)

    return predict
