"""Statistics of a round, and how they are shown: one line of log, scalars and pictures.

They are counts and sums, so those of several ranks add up::

    requested      images that were to be generated
    failed         number of masks by the message of the error that each raised
    not_finite     images with values that are not finite
    filtered       images that the filter judged; of these filter_kept were kept, and trusted is the sum of their
                   trusted shares
    guided_steps   guided steps; loss_before is the sum over them of the critic's loss before a step, loss_after of that
                  after it, where guidance measures it
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsynth.online.sample import Sample
from mmsynth.pool.rounds import Round
from mmsynth.visualization import colorize, draw_grid

Statistics = Mapping[str, Any]

LOSSES = ('loss_before', 'loss_after')


def count_sample(statistics: dict[str, float], guidance: Mapping[str, Any] | None,
                 entry: Mapping[str, Any] | None) -> None:
    """Add to the statistics what guidance and filter recorded of one sample."""
    for step in guidance['trace'] if guidance else ():
        losses = {key: float(step[key]) for key in LOSSES if step.get(key) is not None}
        if 'loss_before' in losses and np.isfinite(list(losses.values())).all():
            _add(statistics, guided_steps=1, **losses)
    if entry is not None:
        _add(statistics, filtered=1, filter_kept=int(entry['keep']), trusted=float(entry['valid']))


def merge_statistics(parts: Sequence[Statistics]) -> dict[str, Any]:
    """Add up the statistics of the shares of a round."""
    merged: dict[str, Any] = {'failed': {}}
    for part in parts:
        for key, value in part.items():
            if key == 'failed':
                _add(merged['failed'], **value)
            else:
                _add(merged, **{key: value})
    return merged


def round_scalars(round: Round, statistics: Statistics, live: int, seconds: float) -> dict[str, float]:
    """Return the numbers that there are, for the visualizer."""
    scalars = dict(published=len(round.ids), dropped=round.dropped, retired=len(round.retired), live=live,
                   seconds=seconds)
    if statistics.get('filtered'):
        scalars |= dict(filter_kept=statistics['filter_kept'] / statistics['filtered'],
                        trusted=statistics['trusted'] / statistics['filtered'])
    if statistics.get('guided_steps'):
        scalars |= {key: statistics[key] / statistics['guided_steps'] for key in LOSSES if key in statistics}
    return {f'online/{name}': float(value) for name, value in scalars.items()}


def round_line(round: Round, statistics: Statistics, live: int, seconds: float) -> str:
    """Describe a round in one line, for the log."""
    scalars = round_scalars(round, statistics, live, seconds)
    parts = [f'{statistics.get("requested", 0)} masks, {len(round.ids)} new samples']
    if 'online/filter_kept' in scalars:
        parts.append(f'filter keeps {scalars["online/filter_kept"]:.1%} and trusts {scalars["online/trusted"]:.1%} of '
                     'the pixels')
    if 'online/loss_before' in scalars:
        losses = [f'{scalars[f"online/{key}"]:.4f}' for key in LOSSES if f'online/{key}' in scalars]
        parts.append(f'guidance loss {" → ".join(losses)}')
    lost = [f'{statistics["not_finite"]} not finite'] if statistics.get('not_finite') else []
    lost += [f'{sum(statistics["failed"].values())} failed'] if statistics.get('failed') else []
    if lost:
        parts.append(' and '.join(lost))
    parts.append(f'{live} live, {len(round.retired)} retired')
    parts.append(f'used from iteration {round.usable_from}; {seconds:.1f} s')
    return f'synthesis round {round.round}: {"; ".join(parts)}'


def preview(samples: Sequence[Sample], palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Draw a grid of samples (H, W, 3), uint8, RGB: mask, image, and the filter's label where there is one."""
    columns: dict[str, list[np.ndarray | None]] = dict(
        mask=[colorize(sample.mask, palette) for sample in samples],
        synthetic=[sample.image for sample in samples])
    if any(sample.filtered is not None for sample in samples):
        columns['trusted'] = [None if sample.filtered is None else colorize(sample.filtered, palette)
                              for sample in samples]
    return draw_grid(columns)


def class_pixels(samples: Sequence[Sample], num_classes: int) -> list[int]:
    """Count the labelled pixels per class that the samples train on."""
    counts = np.zeros(num_classes, np.int64)
    for sample in samples:
        label = sample.mask if sample.filtered is None else sample.filtered
        counts += np.bincount(label.reshape(-1), minlength=256)[:num_classes]
    return counts.tolist()


def _add(statistics: dict[str, float], **values: float) -> None:
    for key, value in values.items():
        statistics[key] = statistics.get(key, 0) + value
