"""What a filter and a selection did to a pool, as tables for the terminal."""
from collections import Counter

from rich.table import Table

from mmsynth.filtering import ClassLosses
from mmsynth.filtering.selection import Selection, entry_of
from mmsynth.pool import Pool
from mmsynth.pool.index import stem_of


def losses_table(losses: ClassLosses) -> Table:
    """Class-wise mean losses."""
    table = _table('class losses on real data', 'class', 'mean loss', 'pixels')
    for name, mean, pixels in zip(losses.class_names, losses.mean_loss, losses.pixels):
        table.add_row(name, 'never seen' if mean is None else f'{mean:.4f}', f'{pixels:,}')
    return table


def class_table(pool: Pool) -> Table:
    """Per class the labelled pixels before and after the filter, over all samples of a pool that are filtered."""
    before: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    for record in pool.records:
        before.update((record.filter or {}).get('pixels', {}))
        removed.update((record.filter or {}).get('removed', {}))
    table = _table('labelled pixels', 'class', 'before', 'after', 'removed')
    for name in pool.classes:
        share = f'{100 * removed[name] / before[name]:.1f} %' if before[name] else '–'
        table.add_row(name, f'{before[name]:,}', f'{before[name] - removed[name]:,.0f}', share)
    return table


def sample_table(pool: Pool) -> Table:
    """How many samples are kept and dropped, and why."""
    counts = Counter((record.filter['keep'], _kind(record.filter)) for record in pool.records if record.filter)
    table = _table('samples', 'result', 'reason', 'samples')
    for (keep, kind), count in sorted(counts.items(), key=lambda item: (not item[0][0], -item[1])):
        table.add_row('kept' if keep else 'dropped', kind, str(count))
    return table


def selection_table(pool: Pool, selection: Selection) -> Table:
    """Per class the share of the trusted pixels, in all samples and in those selected, as often as each is listed."""
    counts = {name: [0.0, 0.0] for name in pool.classes}
    for record in pool.records:
        repeats = selection.repeats[stem_of(record)]
        entry = entry_of(record)
        for name, pixels in entry['pixels'].items():
            trusted = pixels - entry['removed'].get(name, 0)
            counts[name][0] += trusted
            counts[name][1] += trusted * repeats
    totals = [sum(column) or 1 for column in zip(*counts.values())]
    table = _table('share of trusted pixels', 'class', 'all samples', 'selected')
    for name, values in counts.items():
        table.add_row(name, *(f'{100 * value / total:.2f} %' for value, total in zip(values, totals)))
    return table


def _kind(entry: dict) -> str:
    """The reason without the sample's own numbers."""
    if entry['reason'].startswith('weak class'):
        return entry['reason']
    return 'enough valid pixels' if entry['keep'] else 'too few valid pixels'


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify='left')
    for index, column in enumerate(columns):
        table.add_column(column, justify='left' if index == 0 or column == 'reason' else 'right')
    return table
