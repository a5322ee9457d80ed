"""Which pixels of a synthetic sample to trust, and whether to keep it, from the loss of every pixel.

The released rule (TISynth, after FreeMask): a pixel of class k whose cross entropy exceeds ``margin * mean_k`` is not
trusted, ``mean_k`` being the class's mean on real data; see :mod:`~mmsynth.filtering.selection` for the samples.

Legend: H W pixels, K classes, N siblings: samples generated for one mask.
"""
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mmsynth.filtering.selection import keep_sample
from mmsynth.guidance.class_losses import ClassLosses
from mmsynth.utils.labels import IGNORE_INDEX

_CODES = 256  # values of an 8-bit mask


@dataclass(frozen=True)
class FilteredSample:
    """What a filter makes of a sample.

    Attributes:
        label: The mask (H, W), uint8, with 255 where a pixel is not trusted at all.
        weight: (H, W), uint8, trust = value / 255; None from a hard rule.
        entry: What goes into the manifest's ``filter``, JSON values.
    """

    label: np.ndarray
    weight: np.ndarray | None
    entry: dict[str, Any]


@dataclass(frozen=True)
class PixelRule:
    """The rule and its options; all by default is the released one.

    Args:
        class_losses: Of the segmentor that gives the losses, on real data.
        margin: A pixel is trusted up to this multiple of its class's mean loss.
        mode: 'hard' sets the others to 255. 'soft' gives them a weight instead, with r = loss / (margin * mean_k):
            1 for r <= 1, ``exp(-(r - 1)**2)`` beyond, which leaves 1 smoothly and falls to 0.37 at r = 2 and to 0.02
            at r = 3; 255 is set where the weight rounds to 0 in 8 bits.
        sibling_vote: 'median' takes trust only from pixels whose loss is above the margin and also above the median of
            the losses of all siblings at this place. So each place of a mask stays trusted in at least half of its
            samples: where all fail, the mask may be hard there, and the better ones are the best there is. A sample
            without siblings is judged by the margin alone. None judges all so.
        min_valid: A sample is kept if more than this share of all its pixels is within the margin, in [0, 1]. Hard and
            soft keep the same samples: the mean of soft weights hardly falls below any limit.
        weak_classes: Names of classes; a sample that still shows one is kept in any case.
        unseen_classes: What to do with pixels of a class that the real data lacks: 'error' refuses the sample; 'drop'
            trusts none of them, as the release does, whose mean is 0 there; 'keep' trusts them all.

    Raises:
        ValueError: If an option is out of range; all such are named at once.
    """

    class_losses: ClassLosses
    margin: float = 1.25
    mode: Literal['hard', 'soft'] = 'hard'
    sibling_vote: Literal['median'] | None = None
    min_valid: float = 0.8
    weak_classes: tuple[str, ...] = ()
    unseen_classes: Literal['error', 'drop', 'keep'] = 'error'

    def __post_init__(self) -> None:
        _check_options(self)
        object.__setattr__(self, 'weak_classes', tuple(self.weak_classes))

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides, as JSON values; provenance does not."""
        values = asdict(self)
        losses = {key: list(values['class_losses'][key]) for key in ('class_names', 'mean_loss')}
        return values | dict(class_losses=losses, weak_classes=sorted(set(self.weak_classes)))

    def limits(self) -> np.ndarray:
        """The loss up to which a pixel of a mask's value is trusted (256), float64; infinite for what has no mean."""
        limits = np.full(_CODES, np.inf)
        for index, mean in enumerate(self.class_losses.mean_loss):
            if mean is not None:
                limits[index] = self.margin * mean
            elif self.unseen_classes == 'drop':
                limits[index] = 0.0
        return limits

    def check_mask(self, mask: np.ndarray, source: str) -> None:
        """Raise ValueError if a mask (H, W) shows a class without a mean and ``unseen_classes`` is 'error'."""
        if self.unseen_classes != 'error':
            return
        losses = self.class_losses
        shown = np.bincount(mask.reshape(-1), minlength=_CODES)
        wrong = [name for name, mean, count in zip(losses.class_names, losses.mean_loss, shown)
                 if mean is None and count]
        if wrong:
            raise ValueError(f'{source} shows {", ".join(wrong)}, which the real data of the class losses lacks, so '
                             "there is no mean to measure by. Fit the losses on data that has it, or set "
                             "`unseen_classes` to 'drop' (trust no such pixel) or 'keep' (trust all).")

    def decide(self, losses: Sequence[np.ndarray], mask: np.ndarray) -> list[FilteredSample]:
        """Decide on the samples generated for one mask.

        Args:
            losses: N arrays (H, W), float: the pixels' cross entropy. Without a vote each counts by itself.
            mask: (H, W), uint8, class indices; 255 where unlabelled, which it stays.

        Raises:
            ValueError: If the mask shows a class without a mean, see ``unseen_classes``.
        """
        self.check_mask(mask, 'a mask')
        voting = self.sibling_vote == 'median' and len(losses) > 1
        floor = np.median(np.stack(losses), axis=0) if voting else -np.inf
        limits = self.limits()[mask]
        return [self._sample(loss, mask, limits, (loss > limits) & (loss > floor)) for loss in losses]

    def _sample(self, loss: np.ndarray, mask: np.ndarray, limits: np.ndarray, doubted: np.ndarray) -> FilteredSample:
        """One sample, of whose pixels some are doubted (H, W; bool)."""
        within = label = np.where(doubted, np.uint8(IGNORE_INDEX), mask)
        weight, trust = None, label != IGNORE_INDEX
        if self.mode == 'soft':
            weight = np.where(mask == IGNORE_INDEX, 0, 255).astype(np.uint8)
            weight[doubted] = np.rint(255 * soft_weight(loss[doubted], limits[doubted]))
            label, trust = np.where(weight == 0, np.uint8(IGNORE_INDEX), mask), weight / 255
        weak = {index: name for index, name in enumerate(self.class_losses.class_names) if name in self.weak_classes}
        keep, reason = keep_sample(within, weak, self.min_valid)
        entry = dict(keep=keep, reason=reason, valid=float((within != IGNORE_INDEX).mean()))
        return FilteredSample(label, weight, entry | self._measure(loss, mask, trust))

    def _measure(self, loss: np.ndarray, mask: np.ndarray, trust: np.ndarray) -> dict[str, Any]:
        """The numbers of an entry, per class that the mask shows."""
        values = mask.reshape(-1)
        pixels, trusted, total = (
            np.bincount(values, weights, _CODES) for weights in (None, trust.reshape(-1), loss.reshape(-1)))
        shown = [(index, name) for index, name in enumerate(self.class_losses.class_names) if pixels[index]]
        mean = {name: float(total[index] / pixels[index]) for index, name in shown}
        ratios = [mean[name] / real for index, name in shown if (real := self.class_losses.mean_loss[index])]
        removed = {name: float(pixels[index] - trusted[index]) for index, name in shown}
        if self.mode == 'hard':
            removed = {name: round(count) for name, count in removed.items()}
        return dict(pixels={name: int(pixels[index]) for index, name in shown},
                    removed=removed, loss=mean, hardness=float(np.mean(ratios)) if ratios else 0.0)


def soft_weight(loss: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Trust in pixels by their loss and its limit, in [0, 1]; see ``mode`` of :class:`PixelRule`."""
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        beyond = np.asarray(loss, np.float64) / limit - 1
        return np.where(loss > limit, np.exp(-np.square(np.maximum(beyond, 0))), 1.0)


def _check_options(rule: PixelRule) -> None:
    wrong = []
    if not (rule.margin > 0 and math.isfinite(rule.margin)):
        wrong.append(f'`margin` must be a number above 0, got {rule.margin!r}')
    if not 0 <= rule.min_valid <= 1:
        wrong.append(f'`min_valid` must be in [0, 1], got {rule.min_valid!r}')
    for name, known in (('mode', ('hard', 'soft')), ('sibling_vote', (None, 'median')),
                        ('unseen_classes', ('error', 'drop', 'keep'))):
        if getattr(rule, name) not in known:
            wrong.append(f'`{name}` must be one of {", ".join(map(repr, known))}, got {getattr(rule, name)!r}')
    names = rule.class_losses.class_names
    weak = rule.weak_classes
    unknown = [weak] if isinstance(weak, str) else [name for name in weak if name not in names]
    if unknown:
        wrong.append(f'`weak_classes` must be a list of names among {", ".join(names)}, got {unknown[0]!r}')
    if wrong:
        raise ValueError(f'pixel filter: {"; ".join(wrong)}.')
