"""Choosing masks so that their classes reach wanted shares, greedily.

Legend: N masks, K classes, W classes with a wanted share, M masks that may be chosen.
"""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_WORTHWHILE = 1e-6  # by which an exchange must bring the shares nearer; less is nothing that a training sees


def choose_masks(class_counts: NDArray, target: NDArray, count: int, *, max_repeats: int = 1,
                 seed: int = 0) -> NDArray[np.intp]:
    """Choose masks whose pixels together come near to wanted class shares.

    Masks are added one by one, each time the one that brings the shares nearest to the target; then masks are exchanged
    one by one as long as that helps. The distance is Euclidean, over the classes with a wanted share. The result is
    never further from the target than a random choice with the same seed, from which it starts if that is nearer than
    what adding gave.

    Args:
        class_counts: Labelled pixels of every class in every mask (N, K), not negative. Masks without a labelled pixel
            are never chosen.
        target: Wanted shares of the labelled pixels (K,), in [0, 1]; NaN for classes that may have any.
        count: Number of masks to choose, at least 1.
        max_repeats: How often one mask may be chosen.
        seed: Decides between masks that are equally good.

    Returns:
        Indices of the chosen masks (count,), rising.

    Raises:
        ValueError: If the numbers are out of range, there are not enough masks, or a wanted class is in none of them.
    """
    class_counts, target = np.asarray(class_counts, np.float64), np.asarray(target, np.float64)
    _check(class_counts, target, count, max_repeats)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(class_counts.sum(1)))  # of equals the first is taken
    if count > len(order) * max_repeats:
        raise ValueError(f'`count` = {count} masks cannot be chosen from {len(order)} with labelled pixels, each at '
                         f'most {max_repeats} times; raise `max_repeats` or lower `count`.')
    wanted = ~np.isnan(target)
    search = _Search(class_counts[order][:, wanted], class_counts[order].sum(1), target[wanted], max_repeats)
    drawn = rng.permutation(np.repeat(np.arange(len(order)), max_repeats))[:count]
    starts = search.added(count), np.bincount(drawn, minlength=len(order))
    uses = search.exchanged(min(starts, key=search.distance))
    return np.sort(np.repeat(order, uses))


def class_shares(class_counts: NDArray) -> Floats:
    """Each class's share (K,) of all pixels counted in (N, K); zeros if there are none."""
    totals = np.asarray(class_counts, np.float64).sum(0)
    return totals / max(totals.sum(), 1)


@dataclass(frozen=True)
class MaskChoice:
    """What a choice did to the class histogram.

    Attributes:
        classes: Names.
        before: Share of every class in all masks, each taken once.
        wanted: Wanted share, None for classes that may have any.
        reached: Share in the chosen masks.
        count: Number of chosen masks, repeats counted.
        distinct: Number of different masks among them.
    """

    classes: tuple[str, ...]
    before: tuple[float, ...]
    wanted: tuple[float | None, ...]
    reached: tuple[float, ...]
    count: int
    distinct: int

    @classmethod
    def of(cls, classes: Sequence[str], class_counts: NDArray, indices: NDArray[np.intp],
           wanted: Mapping[str, float]) -> 'MaskChoice':
        """Compare chosen masks, by their indices in (N, K) counts, with all of them."""
        return cls(
            classes=tuple(classes),
            before=tuple(class_shares(class_counts).tolist()),
            wanted=tuple(wanted.get(name) for name in classes),
            reached=tuple(class_shares(np.asarray(class_counts)[indices]).tolist()),
            count=len(indices),
            distinct=len(set(indices.tolist())))

    def to_json(self) -> str:
        """A JSON object: the numbers of masks, and before, wanted and reached per class."""
        shares = {name: dict(before=before, wanted=wanted, reached=reached) for name, before, wanted, reached in
                  zip(self.classes, self.before, self.wanted, self.reached)}
        return json.dumps(dict(count=self.count, distinct=self.distinct, shares=shares), indent=1, ensure_ascii=False)

    def table(self) -> str:
        """The shares as text, one class per line, in percent."""
        width = max(5, *map(len, self.classes))
        lines = [f'{"class":{width}}  {"before":>7}  {"wanted":>7}  {"reached":>7}']
        for name, *shares in zip(self.classes, self.before, self.wanted, self.reached):
            lines.append('  '.join([f'{name:{width}}', *(f'{"any" if share is None else f"{share:.2%}":>7}'
                                                         for share in shares)]))
        return '\n'.join(lines)


@dataclass(frozen=True)
class _Search:
    """The masks that may be chosen, in the order in which equals are taken.

    Attributes:
        parts: Pixels of the wanted classes in every mask (M, W).
        sizes: Labelled pixels of every mask (M,), over 0.
        target: Wanted shares (W,).
        max_repeats: How often one mask may be chosen.
    """

    parts: Floats
    sizes: Floats
    target: Floats
    max_repeats: int

    def distance(self, uses: NDArray[np.intp]) -> float:
        """Of a choice, given as how often each mask is used (M,)."""
        return float(self._distances(uses @ self.parts, uses @ self.sizes))

    def added(self, count: int) -> NDArray[np.intp]:
        """Start with nothing and add the best mask ``count`` times."""
        uses = np.zeros(len(self.sizes), np.intp)
        for _ in range(count):
            uses[self._best(uses, 1)] += 1
        return uses

    def exchanged(self, uses: NDArray[np.intp]) -> NDArray[np.intp]:
        """Take out the mask that is best left out and add the best in its place, while that helps."""
        nearest = self.distance(uses)
        while True:
            changed = uses.copy()
            changed[self._best(changed, -1)] -= 1
            changed[self._best(changed, 1)] += 1
            distance = self.distance(changed)
            if distance > nearest - _WORTHWHILE:
                return uses
            uses, nearest = changed, distance

    def _best(self, uses: NDArray[np.intp], step: int) -> int:
        """The mask that is best used once more (``step`` 1) or once less (-1)."""
        distances = self._distances(uses @ self.parts + step * self.parts, uses @ self.sizes + step * self.sizes)
        allowed = uses < self.max_repeats if step > 0 else uses > 0
        return int(np.where(allowed, distances, np.inf).argmin())

    def _distances(self, parts: Floats, sizes: Floats) -> Floats:
        """Of totals (..., W) and (...): the share of nothing is 0."""
        return np.linalg.norm(parts / np.maximum(sizes, 1)[..., None] - self.target, axis=-1)


def _check(class_counts: Floats, target: Floats, count: int, max_repeats: int) -> None:
    if class_counts.ndim != 2 or target.shape != class_counts.shape[1:]:
        raise ValueError('`class_counts` must be (N, K) and `target` (K,), got shapes '
                         f'{class_counts.shape} and {target.shape}.')
    if count < 1 or max_repeats < 1:
        raise ValueError(f'`count` and `max_repeats` must be at least 1, got {count} and {max_repeats}.')
    if not (class_counts >= 0).all():
        raise ValueError(f'`class_counts` must not be negative, got {class_counts.min()}.')
    wanted = target[~np.isnan(target)]
    if not wanted.size or wanted.min() < 0 or wanted.sum() > 1 + 1e-9:
        raise ValueError('`target` must want a share of at least one class, each at least 0, together at most 1; got '
                         f'{target.tolist()}.')
    absent = np.flatnonzero((target > 0) & (class_counts.sum(0) == 0))
    if absent.size:
        raise ValueError(f'`target` wants class {absent[0]}, which no mask shows; leave it out, or add masks with it.')
