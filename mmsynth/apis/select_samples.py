"""Selection of samples of a filtered pool: written as lists, told as a table."""
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mmsynth.filtering.scores import read_scores, worst_classes
from mmsynth.filtering.selection import RareClassSelector, Selection
from mmsynth.pool import Pool
from mmsynth.pool.index import stem_of


def select_samples(root: str | Path,
                   *,
                   weak_classes: Sequence[str] = (),
                   worst: int | None = None,
                   scores: str | Path | None = None,
                   min_valid: float | None = None,
                   max_repeats: int = 1) -> Selection:
    """Select samples of a filtered pool; writes ``selected.txt`` and ``images_per_mask.json`` into it.

    Args:
        root: The pool's folder.
        weak_classes: Names of classes that keep a sample.
        worst: Take the classes with the lowest IoU in ``scores`` as weak ones, too: so many.
        scores: What an evaluation left, see :func:`~mmsynth.filtering.scores.read_scores`.
        min_valid, max_repeats: See :class:`~mmsynth.filtering.RareClassSelector`.

    Raises:
        ValueError: If options contradict each other or do not fit the pool, or no sample is selected.
        FileNotFoundError: If ``scores`` does not exist.
    """
    if (worst is None) != (scores is None):
        raise ValueError('`worst` and `scores` go together: how many classes, and the evaluation that tells which.')
    pool = Pool.open(root)
    weak = dict.fromkeys(weak_classes)
    if worst is not None and scores is not None:
        weak |= dict.fromkeys(worst_classes(read_scores(scores, pool.classes), worst))
    selection = RareClassSelector(tuple(weak), min_valid=min_valid, max_repeats=max_repeats).select(pool)
    selection.write(pool.root)
    return selection


def selection_table(pool: Pool, selection: Selection) -> Table:
    """Per class the share of the trusted pixels, in all samples and in those selected, as often as each is listed."""
    counts = {name: [0.0, 0.0] for name in pool.classes}
    for record in pool.records:
        repeats = selection.repeats[stem_of(record)]
        assert record.filter is not None
        for name, pixels in record.filter['pixels'].items():
            trusted = pixels - record.filter['removed'].get(name, 0)
            counts[name][0] += trusted
            counts[name][1] += trusted * repeats
    totals = [sum(column) or 1 for column in zip(*counts.values())]
    table = Table(title='share of trusted pixels', title_justify='left')
    for index, title in enumerate(('class', 'all samples', 'selected')):
        table.add_column(title, justify='right' if index else 'left')
    for name, values in counts.items():
        table.add_row(name, *(f'{100 * value / total:.2f} %' for value, total in zip(values, totals)))
    return table
