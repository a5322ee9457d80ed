"""Selection of samples of a filtered pool, written as lists."""
from collections.abc import Sequence
from pathlib import Path

from mmsynth.filtering.scores import read_scores, worst_classes
from mmsynth.filtering.selection import RareClassSelector, Selection
from mmsynth.pool import Pool


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
