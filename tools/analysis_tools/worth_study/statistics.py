"""Paired comparison of rows: mIoU from per-image counts, and a bootstrap over seeds and images.

Legend: S seeds, I images of a seed's test part, K classes.
"""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (I, 2, K): intersection and union of each class in each image


class Interval(NamedTuple):
    """A mean difference with its bootstrap interval, in points of mIoU."""

    mean: float
    low: float
    high: float


def class_iou(counts: Counts) -> NDArray[np.float64]:
    """IoU of each class (K,) over images, in percent; NaN for a class that is nowhere."""
    intersection, union = counts.sum(0)
    with np.errstate(invalid='ignore', divide='ignore'):
        return 100 * np.where(union > 0, intersection / union, np.nan)


def miou(counts: Counts) -> float:
    """Mean IoU over the classes that occur, in percent."""
    return float(np.nanmean(class_iou(counts)))


def paired_interval(ours: Sequence[Counts], theirs: Sequence[Counts], *, draws: int = 2000, level: float = 0.95,
                    seed: int = 0) -> Interval:
    """Mean of mIoU(ours) - mIoU(theirs) over seeds, with a percentile bootstrap interval.

    Each draw takes S seeds with replacement, and of each of them I images with replacement, the same for both rows.

    Args:
        ours, theirs: Counts of each seed, in the same order, on the same images.
        draws: Bootstrap draws.
        level: Of the interval.
        seed: Of the draws.

    Raises:
        ValueError: If the rows do not have the same seeds and images.
    """
    if len(ours) != len(theirs) or not len(ours) or any(len(a) != len(b) for a, b in zip(ours, theirs)):
        raise ValueError('`ours` and `theirs` must hold the same seeds and images, at least one of each, got '
                         f'{[len(counts) for counts in ours]} and {[len(counts) for counts in theirs]} images.')
    rng = np.random.default_rng(seed)
    differences = np.empty(draws)
    for draw in range(draws):
        found = []
        for number in rng.integers(len(ours), size=len(ours)):
            images = rng.integers(len(ours[number]), size=len(ours[number]))
            found.append(miou(ours[number][images]) - miou(theirs[number][images]))
        differences[draw] = np.mean(found)
    mean = float(np.mean([miou(a) - miou(b) for a, b in zip(ours, theirs)]))
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def best_row(rows: Mapping[str, Sequence[Counts]]) -> str:
    """The row of the highest mean mIoU over seeds; to be asked of the inner validation part."""
    return max(rows, key=lambda name: float(np.mean([miou(counts) for counts in rows[name]])))
