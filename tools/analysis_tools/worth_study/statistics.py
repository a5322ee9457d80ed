"""Paired comparison of rows: mIoU from per-image counts, and a bootstrap over seeds and images.

Legend: S seeds, I images of a seed's test part, K classes, D bootstrap draws.
"""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (I, 2, K): intersection and union of each class in each image


class Interval(NamedTuple):
    """A mean difference with its bootstrap interval, in points of IoU."""

    mean: float
    low: float
    high: float


def class_iou(counts: Counts) -> NDArray[np.float64]:
    """IoU of each class (K,) over images, in percent; NaN for a class that is nowhere."""
    return _iou(*counts.sum(0))


def miou(counts: Counts) -> float:
    """Mean IoU over the classes that occur, in percent."""
    return float(np.nanmean(class_iou(counts)))


def paired_interval(ours: Sequence[Counts], theirs: Sequence[Counts], *, draws: int = 2000, level: float = 0.95,
                    seed: int = 0) -> Interval:
    """Mean of mIoU(ours) - mIoU(theirs) over seeds, with a percentile bootstrap interval.

    Each draw takes S seeds with replacement, and for each of them I of its images with replacement, the same for both
    rows.

    Args:
        ours, theirs: Counts of each seed, in the same order, on the same images.
        draws: Bootstrap draws.
        level: Of the interval.
        seed: Of the draws.

    Raises:
        ValueError: If the rows do not have the same seeds and images.
    """
    drawn = np.mean([np.nanmean(a, 1) - np.nanmean(b, 1) for a, b in _drawn_ious(ours, theirs, draws, seed)], 0)
    return _interval(float(np.mean([miou(a) - miou(b) for a, b in zip(ours, theirs)])), drawn, level)


def paired_class_intervals(ours: Sequence[Counts], theirs: Sequence[Counts], *, draws: int = 2000, level: float = 0.95,
                           seed: int = 0) -> list[Interval]:
    """As :func:`paired_interval` for the IoU of each class; of the seeds and draws where both rows have one."""
    drawn = _nanmean(np.stack([a - b for a, b in _drawn_ious(ours, theirs, draws, seed)]))
    means = _nanmean(np.stack([class_iou(a) - class_iou(b) for a, b in zip(ours, theirs)]))
    return [_interval(float(mean), own, level) for mean, own in zip(means, drawn.T)]


def _drawn_ious(ours: Sequence[Counts], theirs: Sequence[Counts], draws: int,
                seed: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """IoU of each class (D, K) of both rows, on what was drawn for the first seed, the second … the last."""
    if len(ours) != len(theirs) or not len(ours) or any(len(a) != len(b) for a, b in zip(ours, theirs)):
        raise ValueError('`ours` and `theirs` must hold the same seeds and images, at least one of each, got '
                         f'{[len(counts) for counts in ours]} and {[len(counts) for counts in theirs]} images.')
    rng = np.random.default_rng(seed)
    for _ in ours:
        chosen = rng.integers(len(ours), size=draws)
        found = np.empty((2, draws, *ours[0].shape[1:]))
        for number, rows in enumerate(zip(ours, theirs)):
            here, images = chosen == number, len(rows[0])
            times = rng.multinomial(images, np.full(images, 1 / images), size=here.sum())  # (draws here, I)
            for own, counts in zip(found, rows):
                own[here] = np.tensordot(times, counts, 1)
        yield tuple(_iou(own[:, 0], own[:, 1]) for own in found)


def _iou(intersection: NDArray[Any], union: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid='ignore', divide='ignore'):
        return 100 * np.where(union > 0, intersection / union, np.nan)


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis; NaN, without a warning, where there is nothing but NaN."""
    known = ~np.isnan(values)
    with np.errstate(invalid='ignore'):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def _interval(mean: float, drawn: NDArray[np.float64], level: float) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
    return Interval(mean, float(low), float(high))


def best_row(rows: Mapping[str, Sequence[Counts]]) -> str:
    """The row of the highest mean mIoU over seeds; to be asked of the inner validation part."""
    return max(rows, key=lambda name: float(np.mean([miou(counts) for counts in rows[name]])))
