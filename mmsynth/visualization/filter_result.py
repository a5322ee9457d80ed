"""What a filter recorded of the samples of a pool, read for the report, and summed over the samples."""
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsynth.pool.manifest import PoolRecord

_LEADING_SHARE = re.compile(r'^[0-9.]+( ?%)')


@dataclass(frozen=True)
class FilterResult:
    """A sample's entry ``filter`` in the manifest, as :class:`mmsynth.ClassLossFilter` writes it.

    Attributes:
        keep: Whether the sample is trained on.
        reason: Why.
        valid: Share of all pixels that are labelled and within the filter's margin, in [0, 1]; None if not recorded.
        hardness: Mean over the present classes of loss / mean loss of real data; None if not recorded.
        pixels: Labelled pixels before the filter, by class name.
        removed: How many of them are not trusted; with soft weights the sum of 1 - weight.
        loss: Mean cross entropy of the class's pixels.
    """
    keep: bool
    reason: str
    valid: float | None
    hardness: float | None
    pixels: Mapping[str, float]
    removed: Mapping[str, float]
    loss: Mapping[str, float]


@dataclass(frozen=True)
class ClassFilter:
    """What the filter did to one class, over all samples.

    Attributes:
        samples: That hold the class.
        pixels: Labelled before.
        removed: Not trusted.
        trusted: Left in the kept samples.
        loss: Mean cross entropy of the pixels; None where unknown.
    """
    samples: int
    pixels: float
    removed: float
    trusted: float
    loss: float | None

    @property
    def rate(self) -> float | None:
        """Share of the pixels that was removed, None without any."""
        return self.removed / self.pixels if self.pixels else None


def read_filter(record: PoolRecord) -> FilterResult | None:
    """The entry, if it says whether the sample is kept and counts per class; other filters write what they like."""
    entry = record.filter or {}
    if not isinstance(entry.get('keep'), bool) or not all(
            isinstance(entry.get(key), Mapping) for key in ('pixels', 'removed')):
        return None
    counts = {key: _numbers(entry.get(key)) for key in ('pixels', 'removed', 'loss')}
    return FilterResult(keep=entry['keep'], reason=str(entry.get('reason') or 'no reason recorded'),
                        valid=_number(entry.get('valid')), hardness=_number(entry.get('hardness')), **counts)


def sum_classes(results: Sequence[FilterResult], classes: Sequence[str]) -> list[ClassFilter]:
    """Sums over the samples, one per class."""
    return [_sum_class(results, name) for name in classes]


def count_reasons(results: Sequence[FilterResult]) -> list[tuple[bool, str, int]]:
    """Whether kept, reason and number of samples; kept first, most frequent first.

    Reasons that differ in the sample's own share of pixels alone are one: '91 % valid' and '84 % valid'.
    """
    counts = Counter((result.keep, _LEADING_SHARE.sub(r'…\1', result.reason)) for result in results)
    ordered = sorted(counts.items(), key=lambda item: (not item[0][0], -item[1], item[0][1]))
    return [(keep, reason, count) for (keep, reason), count in ordered]


def _sum_class(results: Sequence[FilterResult], name: str) -> ClassFilter:
    holding = [result for result in results if result.pixels.get(name)]
    pixels = math.fsum(result.pixels[name] for result in holding)
    removed = math.fsum(result.removed.get(name, 0) for result in holding)
    trusted = math.fsum(result.pixels[name] - result.removed.get(name, 0) for result in holding if result.keep)
    known = [result for result in holding if name in result.loss]
    weight = math.fsum(result.pixels[name] for result in known)
    loss = math.fsum(result.loss[name] * result.pixels[name] for result in known) / weight if weight else None
    return ClassFilter(len(holding), pixels, removed, trusted, loss)


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {name: number for name, value in values.items() if (number := _number(value)) is not None}


def _number(value: Any) -> float | None:
    """A finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value
