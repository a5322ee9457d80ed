"""Classifier-free guidance (arXiv 2207.12598) towards several conditions, all in one pass of the network."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from mmsynth.sampling.loop import Predict

Condition = TypeVar('Condition')


@dataclass(frozen=True)
class Negative(Generic[Condition]):
    """The condition without one of its parts, from which sampling is guided away.

    Attributes:
        condition: A dataclass of tensors (B, …), with the part replaced by its null: the empty prompt, a mask without
            labels, an empty reference.
        scale: Strength of the part: 0 leaves it out, 1 is the plain prediction, above 1 it counts for more.
        interval: Lowest and highest sigma, in [0, 1], at which it is guided (arXiv 2404.07724); the plain prediction
            outside.
    """

    condition: Condition
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)


def classifier_free(network: Callable[[Tensor, Tensor, Condition], Tensor], condition: Condition,
                    negatives: Sequence[Negative[Condition]], sigma_of: Callable[[Tensor], float]) -> Predict:
    """Make the prediction that a sampler asks for: ``positive + sum_i (scale_i - 1) * (positive - negative_i)``.

    Of one negative this is the usual ``negative + scale * (positive - negative)``. Each part is held against the
    prediction given all parts, so that a scale of 1 takes that part's guidance away and no other's.

    Args:
        network: ``network(latents (B, C, h, w), timestep (B,), condition) -> prediction (B, C, h, w)``.
        condition: A dataclass of tensors (B, …).
        negatives: What is guided away from; those of scale 1 cost nothing.
        sigma_of: The noise level, in [0, 1], of a timestep (B,) that all samples share.
    """
    negatives = [negative for negative in negatives if negative.scale != 1]
    if not negatives:
        return lambda latents, timestep: network(latents, timestep, condition)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        sigma = sigma_of(timestep)
        active = [negative for negative in negatives if negative.interval[0] <= sigma <= negative.interval[1]]
        if not active:
            return network(latents, timestep, condition)
        conditions = [*(negative.condition for negative in active), condition]
        names = [field.name for field in fields(cast(Any, condition))]
        together = type(condition)(*(torch.cat([getattr(one, name) for one in conditions]) for name in names))
        count = len(conditions)
        *away, towards = network(latents.repeat(count, 1, 1, 1), timestep.repeat(count), together).chunk(count)
        guided = away[0] + active[0].scale * (towards - away[0])
        for negative, prediction in zip(active[1:], away[1:]):
            guided = guided + (negative.scale - 1) * (towards - prediction)
        return guided

    return predict
