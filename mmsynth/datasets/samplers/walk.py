"""The order in which synthetic samples are drawn from a pool that may grow and shrink meanwhile.

Samples are drawn in epochs, each in a shuffled order of its own in which every live sample is drawn once. The place of
a sample in an epoch is a hash of seed, epoch and the sample's number, so it does not depend on which others there are:
when the pool changes, the epoch goes on behind the sample drawn last. Samples that were drawn in it are not drawn in it
again; new ones are if their place lies ahead, or else in the next epoch.

All of it follows from the seed and the pool's changes, in a few steps per change and none per batch.
"""
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmsynth.pool.reader import Change
from mmsynth.utils import derive_seed

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(value) for value in
                           (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class _Segment:
    """A stretch of iterations in which the same samples are live.

    Attributes:
        start: Its first iteration.
        live: Numbers of the samples, in any fixed order.
        drawn: Samples drawn before it.
        epoch: The epoch that it starts in.
        skip: How many of the live samples have a place in that epoch which is passed already.
    """

    start: int
    live: NDArray[np.int64]
    drawn: int
    epoch: int
    skip: int

    def place(self, draw: int) -> tuple[int, int]:
        """Epoch and place in it of the ``draw``-th sample drawn in the segment."""
        epochs, place = divmod(self.skip + draw, len(self.live))
        return self.epoch + epochs, place


class SyntheticWalk:
    """Which synthetic samples the batches of a training draw.

    Args:
        seed: Of the order.
        quota: How many samples are to be drawn in the first so many batches; not falling.
        changes: What enters and leaves the pool, in the order of their iterations.
    """

    def __init__(self, seed: int, quota: Callable[[int], int], changes: Sequence[Change]) -> None:
        self._seed = seed
        self._quota = quota
        self._segments = self._fold(changes)
        self._starts = [segment.start for segment in self._segments]
        self._order = lru_cache(maxsize=4)(self._order_of_epoch)

    def live(self, iteration: int) -> NDArray[np.int64]:
        """Numbers of the samples that are live at an iteration."""
        return self._segments[self._segment_at(iteration)].live

    def drawn_before(self, iteration: int) -> int:
        """How many samples are drawn before an iteration's batch; none while nothing is live, nor later instead."""
        segment = self._segments[self._segment_at(iteration)]
        return segment.drawn + self._drawn_in(segment, iteration)

    def numbers(self, iteration: int) -> list[int]:
        """Numbers of the samples that an iteration's batch draws."""
        index = self._segment_at(iteration)
        segment = self._segments[index]
        first, last = (self._drawn_in(segment, end) for end in (iteration, iteration + 1))
        return [self._number(index, draw) for draw in range(first, last)]

    def _number(self, index: int, draw: int) -> int:
        epoch, place = self._segments[index].place(draw)
        return int(self._segments[index].live[self._order(index, epoch)[place]])

    def _order_of_epoch(self, index: int, epoch: int) -> NDArray[np.int64]:
        return np.argsort(_places(self._seed, epoch, self._segments[index].live), kind='stable')

    def _segment_at(self, iteration: int) -> int:
        return bisect_right(self._starts, iteration) - 1

    def _drawn_in(self, segment: _Segment, end: int) -> int:
        """How many samples a segment draws before iteration ``end``, which lies in it or just behind."""
        return self._quota(end) - self._quota(segment.start) if len(segment.live) else 0

    def _fold(self, changes: Sequence[Change]) -> list[_Segment]:
        """The segments between changes."""
        live: dict[int, None] = {}
        segments = [_Segment(start=0, live=np.zeros(0, np.int64), drawn=0, epoch=0, skip=0)]
        for change in changes:
            live.update(dict.fromkeys(change.joined))
            for number in change.retired:
                live.pop(number, None)
            segments.append(self._next(segments[-1], change.iteration, np.array(list(live), np.int64)))
        return segments

    def _next(self, segment: _Segment, start: int, live: NDArray[np.int64]) -> _Segment:
        """The segment that follows: in the epoch where the last one ends, behind the sample drawn last."""
        drawn = self._drawn_in(segment, start)
        epoch, skip = segment.epoch, segment.skip
        if drawn:
            epoch, place = segment.place(drawn - 1)
            passed = np.sort(_places(self._seed, epoch, segment.live))[place]
        elif skip:
            passed = np.sort(_places(self._seed, epoch, segment.live))[skip - 1]
        if drawn or skip:
            skip = int((_places(self._seed, epoch, live) <= passed).sum())
        return _Segment(start, live, segment.drawn + drawn, epoch, skip)


def _places(seed: int, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The place of each sample in an epoch, as a hash (SplitMix64 of epoch's seed and number)."""
    start = derive_seed(seed, 'lap', epoch)  # the key of the first version: other words would change every draw
    state = numbers.astype(np.uint64) * _GOLDEN + np.uint64(start)
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
