"""What guidance asks of an image: objectives over a critic's output.

Each gives, per sample, a loss to descend and how much is left to do, in [0, 1], by which steps may shrink:

- ``misread``: the cross entropy of the pixels that the critic misreads at present, as released (arXiv 2512.16740);
- ``mask``: that of all pixels;
- ``uncertainty``: the critic is to be unsure: minus its entropy (Deliberate Practice, arXiv 2502.15588);
- ``hardness``: the critic is to be wrong: minus the cross entropy;
- ``target``: the image is to be as hard as real ones: over the classes c that a mask shows,
  ``sum_c share_c * |mean loss of its pixels - target_c|``. Easier images are made harder, harder ones easier.

The last three pull away from the mask, or may: use them with a generator that is guided towards it
(``mask_guidance_scale``), so that the label stays true.

Legend: B batch, H W pixels, K classes.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsynth.guidance.base import CriticOutput
from mmsynth.guidance.class_losses import ClassLosses

OBJECTIVES = ('misread', 'mask', 'uncertainty', 'hardness', 'target')
_TINY = 1e-12


class ObjectiveValue(NamedTuple):
    """An objective of a batch.

    Attributes:
        loss: To descend (B,); its gradient is zero where nothing is left to do.
        remaining: What is left to do (B,), in [0, 1], without a gradient.
    """

    loss: Tensor
    remaining: Tensor


@dataclass(frozen=True)
class Objective:
    """An objective with its settings.

    Args:
        name: One of :data:`OBJECTIVES`.
        class_weights: Weight of the pixels of each class of the mask, at least 0 (K of them), or a file of
            ``tools/fit_class_loss.py``: each class then weighs by its mean loss on real images, the hardest 1. All 1 by
            default. With zeros only the other classes are guided.
        targets: Mean loss that each class is to have (K of them, NaN for a class without), or a file of
            ``tools/fit_class_loss.py``: that on real images. For 'target' only.

    Raises:
        ValueError: If there is no such objective, a weight or target is negative, or ``targets`` is missing or has no
            effect.
        FileNotFoundError: If a file does not exist.
    """

    name: str = 'misread'
    class_weights: Sequence[float] | str | None = None
    targets: Sequence[float] | str | None = None

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f'`objective` must be one of {", ".join(OBJECTIVES)}, got {self.name!r}.')
        if (self.name == 'target') != (self.targets is not None):
            raise ValueError("`objective.targets` goes with the objective 'target' and with no other, got "
                             f'{self.targets!r} for {self.name!r}; give the file that tools/fit_class_loss.py writes.')
        targets, weights = _losses_of(self.targets), _losses_of(self.class_weights)
        if isinstance(self.class_weights, str) and weights is not None:
            hardest = max((weight for weight in weights if not math.isnan(weight)), default=1.0) or 1.0
            weights = [0.0 if math.isnan(weight) else weight / hardest for weight in weights]
        for option, values in (('targets', targets), ('class_weights', weights)):
            if values is not None and any(value < 0 or math.isinf(value) for value in values):
                raise ValueError(f'`objective.{option}` must be finite and not negative, got {values}.')
            object.__setattr__(self, option, values)
        if weights is not None and not any(weight > 0 for weight in weights):
            raise ValueError(f'`objective.class_weights` must have one that is above 0, got {weights}.')

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ValueError if weights or targets are of another class count."""
        for option, values in (('targets', self.targets), ('class_weights', self.class_weights)):
            if values is not None and len(values) != num_classes:
                raise ValueError(f'`objective.{option}` must have one number per class ({num_classes}), got '
                                 f'{len(values)}.')

    def __call__(self, output: CriticOutput, masks: Tensor) -> ObjectiveValue:
        """Evaluate the objective on a critic's output for masks (B, H, W), integer class ids.

        Raises:
            ValueError: If the objective is 'uncertainty' and the critic gives no logits.
        """
        weight = output.valid.float()
        assert not isinstance(self.class_weights, str) and not isinstance(self.targets, str)  # files are read by now
        if self.class_weights is not None:
            weight = weight * weight.new_tensor([*self.class_weights, 0.0])[_class_index(masks, self.class_weights)]
        misread_share = _mean(output.wrong.float(), weight)
        if self.name == 'misread':
            return ObjectiveValue(_mean(output.loss, output.wrong * weight), misread_share)
        if self.name == 'mask':
            return ObjectiveValue(_mean(output.loss, weight), misread_share)
        if self.name == 'hardness':
            return ObjectiveValue(-_mean(output.loss, weight), 1 - misread_share)
        if self.name == 'target':
            assert self.targets is not None
            return _distance(output.loss, masks, weight, self.targets)
        if output.logits is None:
            raise ValueError("`objective` 'uncertainty' needs a critic that gives logits, this one gives its loss "
                             "only; use 'hardness'.")
        entropy = _mean(output.entropy, weight)
        return ObjectiveValue(-entropy, (1 - entropy).detach())


def build_objective(settings: str | Mapping[str, Any]) -> Objective:
    """An objective from its name or its settings.

    Raises:
        ValueError: As :class:`Objective`, or if there is an unknown setting.
    """
    settings = dict(name=settings) if isinstance(settings, str) else dict(settings)
    unknown = settings.keys() - {field.name for field in fields(Objective)}
    if unknown:
        raise ValueError(f'`objective` does not know {", ".join(sorted(unknown))}; it takes '
                         f'{", ".join(field.name for field in fields(Objective))}.')
    return Objective(**settings)


def _distance(loss: Tensor, masks: Tensor, weight: Tensor, targets: Sequence[float]) -> ObjectiveValue:
    known = weight.new_tensor([not math.isnan(target) for target in targets])
    target = weight.new_tensor([0.0 if math.isnan(target) else target for target in targets])  # (K,)
    shown = F.one_hot(_class_index(masks, targets), len(targets) + 1)[..., :-1].flatten(1, 2).float()  # (B, HW, K)
    area = torch.einsum('bpk,bp->bk', shown, weight.flatten(1)) * known
    mean = torch.einsum('bpk,bp->bk', shown, (loss * weight).flatten(1)) * known / area.clamp_min(_TINY)
    share = area / area.sum(1, keepdim=True).clamp_min(_TINY)
    distance = (share * (mean - target).abs()).sum(1)
    return ObjectiveValue(distance, (distance / (share * target).sum(1).clamp_min(_TINY)).clamp(max=1).detach())


def _class_index(masks: Tensor, values: Sequence[float]) -> Tensor:
    """Class ids (B, H, W), int64; the count of classes for pixels of none."""
    return masks.long().clamp(max=len(values))


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean (B,) over the pixels (B, H, W); 0 where all weights are."""
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(_TINY)


def _losses_of(given: Sequence[float] | str | None) -> list[float] | None:
    if isinstance(given, str):
        return [math.nan if loss is None else loss for loss in ClassLosses.read(given).mean_loss]
    return None if given is None else [float(value) for value in given]
