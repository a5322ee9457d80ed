"""What is told of a round: numbers that painters count, one line of log, scalars and pictures.

A painter's facts are sums, so those of several ranks add up::

    requested      masks that were to be painted
    failed         number of masks by the message of the error that each raised
    not_finite     images with values that are no numbers
    filtered       images that the filter looked at; of these filter_kept were kept, and trusted is the sum of their
                   trusted shares
    guided_steps   guided steps; loss_before and loss_after are sums over them of the critic's loss around a step
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsynth.online.sample import Sample
from mmsynth.pool.rounds import Round
from mmsynth.visualization import colorize, draw_grid

Facts = Mapping[str, Any]


def count_sample(facts: dict[str, float], guidance: Mapping[str, Any] | None, entry: Mapping[str, Any] | None) -> None:
    """Add to facts what guidance and filter say of one sample."""
    for step in guidance['trace'] if guidance else ():
        before, after = step.get('loss_before'), step.get('loss_after')
        if before is not None and after is not None and np.isfinite([before, after]).all():
            _add(facts, guided_steps=1, loss_before=float(before), loss_after=float(after))
    if entry is not None:
        _add(facts, filtered=1, filter_kept=int(entry['keep']), trusted=float(entry['valid']))


def merge_facts(parts: Sequence[Facts]) -> dict[str, Any]:
    """The facts of a round from those of its shares."""
    merged: dict[str, Any] = {'failed': {}}
    for part in parts:
        for key, value in part.items():
            if key == 'failed':
                _add(merged['failed'], **value)
            else:
                _add(merged, **{key: value})
    return merged


def round_scalars(round: Round, facts: Facts, live: int, seconds: float) -> dict[str, float]:
    """Numbers for the visualizer; those that there are."""
    scalars = dict(published=len(round.ids), dropped=round.dropped, retired=len(round.retired), live=live,
                   seconds=seconds)
    if facts.get('filtered'):
        scalars |= dict(filter_kept=facts['filter_kept'] / facts['filtered'],
                        trusted=facts['trusted'] / facts['filtered'])
    if facts.get('guided_steps'):
        scalars |= {key: facts[key] / facts['guided_steps'] for key in ('loss_before', 'loss_after')}
    return {f'online/{name}': float(value) for name, value in scalars.items()}


def round_line(round: Round, facts: Facts, live: int, seconds: float) -> str:
    """One line for the log."""
    scalars = round_scalars(round, facts, live, seconds)
    parts = [f'{facts.get("requested", 0)} masks, {len(round.ids)} new samples']
    if 'online/filter_kept' in scalars:
        parts.append(f'filter keeps {scalars["online/filter_kept"]:.1%} and trusts {scalars["online/trusted"]:.1%} of '
                     'the pixels')
    if 'online/loss_before' in scalars:
        parts.append(f'guidance loss {scalars["online/loss_before"]:.4f} → {scalars["online/loss_after"]:.4f}')
    lost = [f'{facts[key]} {text}' for key, text in (('not_finite', 'not finite'), ) if facts.get(key)]
    lost += [f'{sum(facts["failed"].values())} failed'] if facts.get('failed') else []
    if lost:
        parts.append(' and '.join(lost))
    parts.append(f'{live} live, {len(round.retired)} retired')
    parts.append(f'used from iteration {round.usable_from}; {seconds:.1f} s')
    return f'synthesis round {round.round}: {"; ".join(parts)}'


def preview(samples: Sequence[Sample], palette: Sequence[Sequence[int]]) -> np.ndarray:
    """A grid of samples (H, W, 3), uint8, RGB: mask, image, and the filter's label where there is one."""
    columns = dict(mask=[colorize(sample.mask, palette) for sample in samples],
                   synthetic=[sample.image for sample in samples])
    if any(sample.filtered is not None for sample in samples):
        columns['trusted'] = [None if sample.filtered is None else colorize(sample.filtered, palette)
                              for sample in samples]
    return draw_grid(columns)


def class_pixels(samples: Sequence[Sample], num_classes: int) -> list[int]:
    """Labelled pixels per class that the samples train on."""
    counts = np.zeros(num_classes, np.int64)
    for sample in samples:
        label = sample.mask if sample.filtered is None else sample.filtered
        counts += np.bincount(label.reshape(-1), minlength=256)[:num_classes]
    return counts.tolist()


def _add(facts: dict[str, float], **values: float) -> None:
    for key, value in values.items():
        facts[key] = facts.get(key, 0) + value
