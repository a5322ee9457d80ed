"""Sections of a pool's report on its filter: what it removed of each class, which samples it kept, the hard ones."""
from collections.abc import Sequence

from mmsynth.pool.manifest import PoolRecord
from mmsynth.visualization.filter_plots import plot_filter_rates, plot_valid_shares
from mmsynth.visualization.filter_result import FilterResult, count_reasons, read_filter, sum_classes
from mmsynth.visualization.plots import percent
from mmsynth.visualization.report import Report
from mmsynth.visualization.sample_cards import CardMaker

_SHOWN_AT_ENDS = 4  # samples shown as the hardest, and as the easiest
_FEWEST = 4  # samples that there must be for that
_HARDNESS = ("Hardness is the loss of the filter's segmentor relative to real data: the mean over the sample's classes "
             "of the class's loss divided by its mean loss on real data. 1 is as hard as real data.")


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
        report.add_text('Other filters', f'{others:,} samples carry a result without verdict or counts per class, '
                        'which this page cannot show.')
    if not results:
        return
    _add_rates(report, results, len(records), classes, palette)
    _add_verdicts(report, results)


def add_extremes(report: Report, records: Sequence[PoolRecord], cards: CardMaker) -> None:
    """Add the sections 'Hardest samples' and 'Best samples', by the hardness that the filter recorded.

    Nothing for so few samples that the two would be all of them.
    """
    results = filter_results(records)
    known = [record for record in records if record.id in results and results[record.id].hardness is not None]
    ordered = sorted(known, key=lambda record: -results[record.id].hardness)  # ties stay in the pool's order
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


def _add_verdicts(report: Report, results: Sequence[FilterResult]) -> None:
    heading = 'Kept and dropped samples'
    shares = {keep: [_share(result.valid) for result in results if result.keep is keep and result.valid is not None]
              for keep in (True, False)}
    if any(shares.values()):
        report.add_figure(heading, plot_valid_shares(shares[True], shares[False]),
                          'Samples by the share of their pixels that stay labelled.')
        heading = ''
    rows = [['kept' if keep else 'dropped', reason, count, percent(count / len(results))]
            for keep, reason, count in count_reasons(results)]
    kept = sum(result.keep for result in results)
    report.add_table(heading, ['verdict', 'reason', 'samples', 'share'], rows,
                     f'{kept:,} of {len(results):,} filtered samples were kept.')


def _share(value: float) -> float:
    """A recorded share, held to [0, 1] against rounding and against manifests from outside."""
    return min(max(value, 0.), 1.)
