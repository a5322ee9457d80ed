"""The report of one pool: samples, class balance, filter rates, guidance, and where all of it came from."""
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsynth.pool.header import flatten
from mmsynth.pool.manifest import PoolRecord
from mmsynth.pool.store import Pool
from mmsynth.utils import progress_bar
from mmsynth.visualization.grid import colorize, draw_grid
from mmsynth.visualization.plots import (class_shares, count_uncorrected, guidance_series, percent, plot_class_balance,
                                         plot_guidance)
from mmsynth.visualization.report import Report

_GRIDS_BESIDE = {2: 3, 3: 2}  # by number of columns: what the page's width holds
_PROGRESS_FROM = 500  # masks; fewer are counted within a second or two


def pool_report(pool: Pool, path: str | Path, *, class_counts_before: Sequence[int] | None,
                judge_masks: Mapping[str, np.ndarray] | None = None, max_samples: int = 24) -> None:
    """Write the report of a pool as one HTML file.

    Args:
        pool: The pool; it may be empty.
        path: The HTML file.
        class_counts_before: Labelled pixels per class of the real training set, in the pool's order of classes. None
            if unknown: the pool is shown alone then.
        judge_masks: What a model that did not guide reads from the synthetic images: record id to (H, W) class map.
            Records without one get a blank.
        max_samples: Number of samples shown, spread evenly over the pool.

    Raises:
        ValueError: If an argument breaks its rule, or a file of the pool is damaged.
        OSError: If the page cannot be written.
    """
    if max_samples < 0:
        raise ValueError(f'`max_samples` must not be negative, got {max_samples}')
    if class_counts_before is not None and len(class_counts_before) != len(pool.classes):
        raise ValueError(f'`class_counts_before` must hold one count per class of the pool ({len(pool.classes)}), got '
                         f'{len(class_counts_before)}')
    records = pool.records
    report = Report(f'Synthetic samples in {pool.root.name}', _summary(pool, records))
    if records:
        _add_samples(report, pool, _spread(records, max_samples), judge_masks or {})
        _add_class_balance(report, pool, class_counts_before)
        _add_guidance(report, records)
        _add_filter(report, records)
    else:
        report.add_text('Samples', 'The pool is empty.')
    _add_provenance(report, pool, records)
    report.write(path)


def count_classes(pool: Pool) -> list[int]:
    """Labelled pixels per class over all masks of a pool.

    Raises:
        ValueError: If a mask is damaged.
    """
    counts = np.zeros(256, dtype=np.int64)
    records = pool.records
    shown = len(records) >= _PROGRESS_FROM
    for record in progress_bar(records, unit='mask', title='counting classes') if shown else records:
        counts += np.bincount(pool.load_mask(record).ravel(), minlength=256)
    return counts[:len(pool.classes)].tolist()


def _summary(pool: Pool, records: Sequence[PoolRecord]) -> dict[str, str]:
    return {'synthetic samples': f'{len(records):,}', 'masks they were painted for':
            f'{len({record.source_mask for record in records}):,}', 'classes': str(len(pool.classes)),
            'guidance': ', '.join(sorted({record.guidance['name'] if record.guidance else 'none'
                                          for record in records})) or '–'}


def _spread(records: Sequence[PoolRecord], number: int) -> list[PoolRecord]:
    """At most ``number`` records at even distances."""
    if len(records) <= number:
        return list(records)
    return [records[index * len(records) // number] for index in range(number)]


def _add_samples(report: Report, pool: Pool, records: Sequence[PoolRecord],
                 judge_masks: Mapping[str, np.ndarray]) -> None:
    grids = []
    rows = math.ceil(len(records) / _GRIDS_BESIDE[3 if judge_masks else 2])
    for start in range(0, len(records), max(rows, 1)):
        part = records[start:start + rows]
        columns: dict[str, list[np.ndarray | None]] = {
            'mask': [colorize(pool.load_mask(record), pool.palette) for record in part],
            'synthetic': [pool.load_image(record) for record in part]}
        if judge_masks:
            columns['judge reads'] = [colorize(judge_masks[record.id], pool.palette) if record.id in judge_masks
                                      else None for record in part]
        grids.append(draw_grid(columns, scale={'synthetic': 'smooth'}))
    if grids:
        caption = f'{len(records)} of {len(pool)} samples, spread evenly over the pool. Unlabelled pixels are black.'
        report.add_gallery('Samples', grids, caption, legend=list(zip(pool.classes, pool.palette, strict=True)))


def _add_class_balance(report: Report, pool: Pool, before: Sequence[int] | None) -> None:
    pool_counts = count_classes(pool)
    after = pool_counts if before is None else [
        int(real) + new for real, new in zip(before, pool_counts, strict=True)]
    if not sum(after) or (before is not None and not sum(before)):
        report.add_text('Class balance', 'No pixel is labelled.')
        return
    shares = class_shares(after)
    if before is None:
        caption = 'Share of each class among the labelled pixels of the pool.'
        columns, rows = ['class', 'pixels', 'share'], [
            [name, count, percent(share)] for name, count, share in zip(pool.classes, after, shares, strict=True)]
    else:
        caption = 'Share of each class among all labelled pixels: real data alone, and with the whole pool added.'
        columns, rows = ['class', 'real pixels', 'synthetic pixels', 'share before', 'share after', 'factor'], [
            [name, int(real), new, percent(old), percent(share), share / old if old else None]
            for name, real, new, old, share in zip(
                pool.classes, before, pool_counts, class_shares(before), shares, strict=True)]
    report.add_figure('Class balance', plot_class_balance(before, after, pool.classes, pool.palette), caption)
    report.add_table('Class balance in numbers', columns, rows)


def _add_guidance(report: Report, records: Sequence[PoolRecord]) -> None:
    traces = [record.guidance['trace'] for record in records if record.guidance]
    series = {key: guidance_series(traces, key) for key in
              ('loss_before', 'loss_after', 'wrong_before', 'wrong_after', 'relative_change')}
    steps = sorted({step for values in series.values() for step in values})
    if steps:
        compared = ('of the first candidate (before) and of the one kept (after)' if _kept(traces) else
                    'before and after the correction of each step')
        report.add_figure('Guidance', plot_guidance(traces),
                          f"The critic's loss {compared}: mean over {len(traces)} samples, band of one standard "
                          'deviation.')
        present = [key for key, values in series.items() if values]
        rows = [[step, *(float(np.mean(series[key][step])) if step in series[key] else None for key in present)]
                for step in steps]
        report.add_table('Guidance in numbers', ['step', *(key.replace('_', ' ') for key in present)], rows,
                         'Means over the samples.')
    _add_choices(report, traces)
    samples, skipped = count_uncorrected(traces)
    if skipped:
        report.add_text('Uncorrected steps', f'{skipped} of {sum(map(len, traces))} guided steps were left uncorrected '
                        f'because the gradient of the critic\'s loss was not finite there, in {samples} of '
                        f'{len(traces)} samples.')


def _add_choices(report: Report, traces: Sequence[Sequence[Mapping[str, float | None]]]) -> None:
    """How often which candidate was kept, where guidance chose among several."""
    kept = _kept(traces)
    if kept:
        rows = [[number, count, percent(count / len(kept))] for number, count in enumerate(np.bincount(kept).tolist())]
        report.add_table('Candidates kept', ['candidate', 'samples', 'share'], rows,
                         'Candidate 0 is what is painted without guidance.')


def _kept(traces: Sequence[Sequence[Mapping[str, float | None]]]) -> list[int]:
    return [int(entry['candidate']) for trace in traces for entry in trace if entry.get('candidate') is not None]


def _add_filter(report: Report, records: Sequence[PoolRecord]) -> None:
    """What the filter recorded: numbers and yes/no as mean, least and greatest over the samples that have them."""
    filtered = [flatten(record.filter) for record in records if record.filter]
    if not filtered:
        return
    rows: list[list[Any]] = []
    for key in dict.fromkeys(key for values in filtered for key in values):
        numbers = list(_numbers(values.get(key) for values in filtered))
        if numbers:
            rows.append([key, len(numbers), float(np.mean(numbers)), min(numbers), max(numbers)])
    report.add_table('Filter rates', ['recorded', 'samples', 'mean', 'least', 'greatest'], rows,
                     f'{len(filtered)} of {len(records)} samples went through a filter.')


def _numbers(values: Iterable[Any]) -> Iterable[float]:
    return (float(value) for value in values if isinstance(value, (int, float)))


def _add_provenance(report: Report, pool: Pool, records: Sequence[PoolRecord]) -> None:
    rows = [[key, '–' if value is None else str(value)] for key, value in flatten(pool.settings).items()]
    generators = {tuple(record.generator.items()): None for record in records}
    for number, generator in enumerate(generators, start=1):
        label = 'recorded generator' if len(generators) == 1 else f'recorded generator {number}'
        rows += [[f'{label}: {key}', '–' if value is None else value] for key, value in generator]
    report.add_table('Where it came from', ['setting', 'value'], rows, f'Pool: {pool.root}')
