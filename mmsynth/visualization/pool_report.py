"""The report of one pool: samples, class balance, filter, guidance, measures, and where all of it came from."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsynth.pool.header import flatten
from mmsynth.pool.manifest import PoolRecord
from mmsynth.pool.store import Pool
from mmsynth.utils import progress_bar
from mmsynth.visualization.filter_result import FilterResult, count_reasons, read_filter, sum_classes
from mmsynth.visualization.plots import (
    class_shares,
    count_uncorrected,
    guidance_series,
    percent,
    plot_class_balance,
    plot_filter_rates,
    plot_guidance,
    plot_valid_shares,
    shorten,
)
from mmsynth.visualization.report import Report
from mmsynth.visualization.sample_cards import CardMaker, ShownJudge

_PROGRESS_FROM = 500  # masks; fewer are counted within a second or two
_SHOWN_AT_ENDS = 4  # samples shown as the hardest, and as the easiest
_FEWEST = 4  # samples that there must be for that
_HARDNESS = ("Hardness is the loss of the filter's segmentor relative to real data: the mean over the sample's classes "
             "of the class's loss divided by its mean loss on real data. 1 is as hard as real data.")
_MEASURES = 'metrics.'  # under this key the pool's evaluation has them, beside its judge and its real set


def pool_report(pool: Pool, path: str | Path, *, class_counts_before: Sequence[int] | None,
                judge: ShownJudge | None = None, metrics: Mapping[str, Any] | None = None,
                details: Mapping[str, Any] | None = None, max_samples: int = 16) -> None:
    """Write the report of a pool as one HTML file.

    Args:
        pool: The pool; it may be empty.
        path: The HTML file.
        class_counts_before: Labelled pixels per class of the real training set, in the pool's order of classes. None
            if unknown: the pool is shown alone then.
        judge: Reads the images of the samples that are shown.
        metrics: Measures of the pool, any JSON object.
        details: Further lines of the table of provenance, name to value.
        max_samples: Number of samples shown, spread evenly over the pool.

    Raises:
        ValueError: If an argument breaks its rule, or an image or mask of the pool is damaged.
        OSError: If the page cannot be written.
    """
    if max_samples < 0:
        raise ValueError(f'`max_samples` must not be negative, got {max_samples}')
    if class_counts_before is not None and len(class_counts_before) != len(pool.classes):
        raise ValueError(f'`class_counts_before` must hold one count per class of the pool ({len(pool.classes)}), got '
                         f'{len(class_counts_before)}')
    records = pool.records
    report = Report(f'Synthetic samples in {pool.root.resolve().name}', _summary(pool, records))
    if records:
        cards = CardMaker(pool, judge)
        _add_samples(report, pool, _spread(records, max_samples), cards, judge)
        _add_class_balance(report, pool, class_counts_before, records)
        add_filter(report, records, pool.classes, pool.palette)
        if max_samples:
            add_extremes(report, records, cards)
        _add_guidance(report, pool, records)
        _add_origins(report, records)
    else:
        report.add_text('Samples', 'The pool is empty.')
    if metrics:
        add_metrics(report, metrics, pool.classes)
    _add_provenance(report, pool, records, details or {})
    report.write(path)


def count_classes(pool: Pool) -> list[int]:
    """Labelled pixels per class over all masks of a pool.

    Raises:
        ValueError: If a mask is damaged.
    """
    counts = np.zeros(256, dtype=np.int64)
    records = pool.records
    for record in progress_bar(records, unit='mask', title='counting classes', hidden=len(records) < _PROGRESS_FROM):
        counts += np.bincount(pool.load_mask(record).ravel(), minlength=256)
    return counts[:len(pool.classes)].tolist()


def _summary(pool: Pool, records: Sequence[PoolRecord]) -> dict[str, str]:
    summary = {'synthetic samples': f'{len(records):,}'}
    results = filter_results(records).values()
    if results:
        kept = sum(result.keep for result in results)
        summary['kept by the filter'] = f'{kept:,} of {len(results):,}'
    names = {record.guidance['name'] if record.guidance else 'none' for record in records}
    return summary | {'masks they were generated for': f'{len({record.source_mask for record in records}):,}',
                      'classes': str(len(pool.classes)), 'guidance': ', '.join(sorted(names)) or '–'}


def _spread(records: Sequence[PoolRecord], number: int) -> list[PoolRecord]:
    """At most ``number`` records at even distances."""
    if len(records) <= number:
        return list(records)
    return [records[index * len(records) // number] for index in range(number)]


def _add_samples(report: Report, pool: Pool, records: Sequence[PoolRecord], cards: CardMaker,
                 judge: ShownJudge | None) -> None:
    if not records:
        return
    caption = f'{len(records)} of {len(pool):,} samples, spread evenly over the pool. Unlabelled pixels are black.'
    if judge is not None:
        caption += f' Judge: {judge.name}. {judge.note}'.rstrip()
    report.add_samples('Samples', cards.make(records), caption,
                       legend=list(zip(pool.classes, pool.palette, strict=True)))


def _add_class_balance(report: Report, pool: Pool, real: Sequence[int] | None, records: Sequence[PoolRecord]) -> None:
    """Up to three stages: real data, the pool as generated, and what the filter left of it."""
    generated, results = count_classes(pool), list(filter_results(records).values())
    trusted = trusted_pixels(results, pool.classes) if results else None
    heading = 'Class balance'
    if trusted is not None and not sum(trusted):
        report.add_text(heading, 'The filter kept no labelled pixel; below is the pool as it was generated.')
        trusted, heading = None, ''
    added = generated if trusted is None else trusted
    stages = {} if real is None else {'real': [int(count) for count in real]}
    stages |= {'synthetic': generated} | ({} if trusted is None else {'kept': trusted})
    if real is not None:
        stages['real + kept' if trusted is not None else 'real + synthetic'] = [
            int(old) + new for old, new in zip(real, added, strict=True)]
    if not all(map(sum, stages.values())):
        empty = ', '.join(name for name, counts in stages.items() if not sum(counts))
        report.add_text(heading, f'No pixel is labelled: {empty}.')
        return
    for before, after, caption in _balances(real, generated, trusted, added):
        names = [shorten(name) for name in pool.classes]
        report.add_figure(heading, plot_class_balance(before, after, names, pool.palette), caption)
        heading = ''
    _add_balance_table(report, pool.classes, stages)


def _balances(real: Sequence[int] | None, generated: list[int], trusted: list[int] | None,
              added: list[int]) -> list[tuple[list[int] | None, list[int], str]]:
    """What is compared: counts before, counts after, caption."""
    found: list[tuple[list[int] | None, list[int], str]] = []
    if trusted is not None:
        found.append((generated, trusted, 'The pool before and after the filter: labels as generated, and those left '
                      'in the samples that it kept.'))
    if real is not None:
        whole = 'with the whole pool added' if trusted is None else 'with what the filter kept of the pool added'
        found.append((list(real), [int(old) + new for old, new in zip(real, added, strict=True)],
                      f'All labelled pixels: real data alone, and {whole}.'))
    return found or [(None, generated, 'Share of each class among the labelled pixels of the pool.')]


def _add_balance_table(report: Report, classes: Sequence[str], stages: Mapping[str, Sequence[int]]) -> None:
    """Pixels and share per stage, and the growth of each share where there is real data."""
    shares = {name: class_shares(counts) for name, counts in stages.items()}
    counted = [name for name in stages if not name.startswith('real +')]
    compared = [shares['real'], shares[list(stages)[-1]]] if 'real' in stages else None
    columns = ['class', *(f'{name} pixels' for name in counted), *(f'{name} share' for name in stages)]
    rows = []
    for index, name in enumerate(classes):
        row = [name, *(stages[stage][index] for stage in counted), *(percent(shares[stage][index]) for stage in stages)]
        if compared is not None:
            old, new = (values[index] for values in compared)
            row.append(new / old if old else None)
        rows.append(row)
    report.add_table('', [*columns, 'factor'] if compared else columns, rows,
                     'Factor: how much the share of the class grows in the training set.' if compared else None)


def _add_guidance(report: Report, pool: Pool, records: Sequence[PoolRecord]) -> None:
    traces = [pool.load_trace(record) for record in records if record.guidance]
    series = {key: guidance_series(traces, key) for key in
              ('loss_before', 'loss_after', 'wrong_before', 'wrong_after', 'relative_change')}
    steps = sorted({step for values in series.values() for step in values})
    if steps:
        compared = ('of the first candidate (before) and of the one kept (after)' if _kept(traces) else
                    'before and after the correction of each step' if series['loss_after'] else
                    'before the correction of each step')
        report.add_figure('Guidance', plot_guidance(traces),
                          f"The critic's loss {compared}: mean over {len(traces)} samples, band of one standard "
                          'deviation.')
        present = [key for key, values in series.items() if values]
        rows = [[step, *(float(np.mean(series[key][step])) if step in series[key] else None for key in present)]
                for step in steps]
        report.add_table('', ['step', *(key.replace('_', ' ') for key in present)], rows,
                         'Means over the samples.')
    _add_choices(report, traces)
    samples, skipped = count_uncorrected(traces)
    if skipped:
        report.add_text('Uncorrected steps', f'{skipped} of {sum(map(len, traces))} guided steps were left uncorrected '
                        f'because the gradient of the critic\'s loss was not finite there, or 0, in {samples} of '
                        f'{len(traces)} samples.')


def _add_choices(report: Report, traces: Sequence[Sequence[Mapping[str, float | None]]]) -> None:
    """How often which candidate was kept, where guidance chose among several."""
    kept = _kept(traces)
    if kept:
        rows = [[number, count, percent(count / len(kept))] for number, count in enumerate(np.bincount(kept).tolist())]
        report.add_table('Candidates kept', ['candidate', 'samples', 'share'], rows,
                         'Candidate 0 is what is generated without guidance.')


def _kept(traces: Sequence[Sequence[Mapping[str, float | None]]]) -> list[int]:
    found = (entry.get('candidate') for trace in traces for entry in trace)
    return [int(candidate) for candidate in found if candidate is not None]


def _add_origins(report: Report, records: Sequence[PoolRecord]) -> None:
    """How many samples were generated for masks of which origin; nothing if all are the data set's own."""
    if all(record.mask_origin is None for record in records):
        return
    groups: dict[str, list[PoolRecord]] = {}
    for record in records:
        origin = record.mask_origin
        name = 'data set, as it is' if origin is None else str(origin.get('source', 'not named'))
        groups.setdefault(name, []).append(record)
    rows = [[name, len(group), percent(len(group) / len(records)), len({record.source_mask for record in group})]
            for name, group in sorted(groups.items(), key=lambda item: -len(item[1]))]
    report.add_table('Where the masks came from', ['source', 'samples', 'share', 'masks'], rows)


def _add_provenance(report: Report, pool: Pool, records: Sequence[PoolRecord], details: Mapping[str, Any]) -> None:
    rows = [[key, _text(value)] for key, value in flatten(pool.settings).items()]
    generators = {tuple(record.generator.items()): None for record in records}
    for number, generator in enumerate(generators, start=1):
        label = 'recorded generator' if len(generators) == 1 else f'recorded generator {number}'
        rows += [[f'{label}: {key}', _text(value)] for key, value in generator]
    filters = {str(record.filter['filter_sha256']): None for record in records
               if record.filter and record.filter.get('filter_sha256')}
    rows += [['filter_sha256', name] for name in filters]
    rows += [[key, _text(value)] for key, value in details.items()]
    report.add_table('Where it came from', ['setting', 'value'], rows, f'Pool: {pool.root}')


def _text(value: Any) -> str:
    return '–' if value is None else str(value)


def filter_results(records: Sequence[PoolRecord]) -> dict[str, FilterResult]:
    """What the filter recorded, by the record's id; records without a result are left out."""
    return {record.id: result for record in records if (result := read_filter(record)) is not None}


def trusted_pixels(results: Sequence[FilterResult], classes: Sequence[str]) -> list[int]:
    """Pixels per class whose labels the filter left in the samples that it kept."""
    return [round(max(total.trusted, 0)) for total in sum_classes(results, classes)]


def add_filter(report: Report, records: Sequence[PoolRecord], classes: Sequence[str],
               palette: Sequence[Sequence[int]]) -> None:
    """Add the sections 'Filter rate per class' and 'Kept and dropped samples'; nothing if no filter ran."""
    results = list(filter_results(records).values())
    others = sum(record.filter is not None for record in records) - len(results)
    if others:
        report.add_text('Other filters', f'{others:,} samples carry a result that does not say whether they are kept, '
                        'or has no counts per class, which this page cannot show.')
    if not results:
        return
    _add_rates(report, results, len(records), classes, palette)
    _add_reasons(report, results)


def add_extremes(report: Report, records: Sequence[PoolRecord], cards: CardMaker) -> None:
    """Add the sections 'Hardest samples' and 'Best samples', by the hardness that the filter recorded.

    Nothing for so few samples that the two would be all of them.
    """
    results = filter_results(records)
    hardness = {id: result.hardness for id, result in results.items() if result.hardness is not None}
    known = [record for record in records if record.id in hardness]
    ordered = sorted(known, key=lambda record: -hardness[record.id])  # ties stay in the pool's order
    if len(ordered) < _FEWEST:
        return
    hardest = ordered[:min(_SHOWN_AT_ENDS, len(ordered) // 2)]
    best = [record for record in reversed(ordered[len(hardest):]) if results[record.id].keep][:_SHOWN_AT_ENDS]
    report.add_samples('Hardest samples', cards.make(hardest), _HARDNESS)
    if best:
        report.add_samples('Best samples', cards.make(best), 'The kept samples of the least hardness.')


def _add_rates(report: Report, results: Sequence[FilterResult], number: int, classes: Sequence[str],
               palette: Sequence[Sequence[int]]) -> None:
    heading, totals = 'Filter rate per class', sum_classes(results, classes)
    pixels = sum(total.pixels for total in totals)
    if not pixels:
        report.add_text(heading, f'{len(results):,} of {number:,} samples went through a filter; none has a labelled '
                        'pixel.')
        return
    overall = _share(sum(total.removed for total in totals) / pixels)
    rates = [None if total.rate is None else _share(total.rate) for total in totals]
    caption = 'Share of the labelled pixels that the filter does not trust: labels it removed, or weight it took.'
    report.add_figure(heading, plot_filter_rates(rates, overall, classes, palette), caption)
    rows = [[name, total.samples, round(total.pixels), round(total.removed), None if rate is None else percent(rate),
             total.loss] for name, total, rate in zip(classes, totals, rates, strict=True)]
    report.add_table('', ['class', 'samples', 'pixels', 'removed', 'rate', 'mean loss'], rows,
                     f'{len(results):,} of {number:,} samples went through the filter.')


def _add_reasons(report: Report, results: Sequence[FilterResult]) -> None:
    heading = 'Kept and dropped samples'
    shares = {keep: [_share(result.valid) for result in results if result.keep is keep and result.valid is not None]
              for keep in (True, False)}
    if any(shares.values()):
        report.add_figure(heading, plot_valid_shares(shares[True], shares[False]),
                          "Samples by the share of their pixels that are labelled and within the filter's margin.")
        heading = ''
    rows = [['kept' if keep else 'dropped', reason, count, percent(count / len(results))]
            for keep, reason, count in count_reasons(results)]
    kept = sum(result.keep for result in results)
    report.add_table(heading, ['filter', 'reason', 'samples', 'share'], rows,
                     f'{kept:,} of {len(results):,} filtered samples were kept.')


def _share(value: float) -> float:
    """A recorded share, held to [0, 1] against rounding and against manifests from outside."""
    return min(max(value, 0.), 1.)


def add_metrics(report: Report, metrics: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Add the section 'Metrics'.

    Numbers named ``MEASURE.CLASS`` and lists of one number per class become columns of a table of classes; all else
    is listed by name, nested objects with dotted names.

    Args:
        report: Takes the section.
        metrics: JSON values, such as the file that the pool's evaluation writes.
        classes: The pool's class names.
    """
    singles: list[list[Any]] = []
    columns: dict[str, dict[str, Any]] = {}
    for key, value in flatten(metrics).items():
        key = key.removeprefix(_MEASURES)
        label = _class_of(key, classes)
        if label is not None and _is_number(value):
            columns.setdefault(key.removesuffix(f'.{label}'), {})[label] = value
        elif isinstance(value, list) and len(value) == len(classes) > 1 and all(map(_is_number, value)):
            columns[key] = dict(zip(classes, value, strict=True))
        else:
            singles.append([key, _shown(value)])
    heading = 'Metrics'
    if singles:
        report.add_table(heading, ['measure', 'value'], singles)
        heading = ''
    if columns:
        rows = [[name, *(values.get(name) for values in columns.values())] for name in classes]
        report.add_table(heading, ['class', *columns], rows)


def _class_of(key: str, classes: Sequence[str]) -> str | None:
    """The class whose name ends a dotted key; the longest where several do."""
    return max((name for name in classes if key.endswith(f'.{name}')), key=len, default=None)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> Any:
    """Numbers stay what they are; lists, truth values and the like as text."""
    if isinstance(value, list):
        return ', '.join(map(str, value))
    return value if _is_number(value) else str(value)
