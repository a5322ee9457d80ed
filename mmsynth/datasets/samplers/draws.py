"""What a batch sampler asks of a data set: which sample, and with which randomness.

mmseg's transforms draw from the global generators of a worker, whose state depends on everything that worker loaded
before. A :class:`Draw` brings a seed of its own, so that a sample comes out of its pipeline the same with any number of
workers, and after a resume.
"""
from typing import Any


class Draw(int):
    """An index of a data set that says more than an index does; any data set takes it for a plain one.

    Args:
        index: Of the sample.
        seed: Of its transforms, in [0, 2**63).
        iteration: The training iteration whose batch it belongs to.
    """

    seed: int
    iteration: int

    def __new__(cls, index: int, seed: int, iteration: int) -> 'Draw':
        draw = super().__new__(cls, index)
        draw.seed, draw.iteration = seed, iteration
        return draw

    def __getnewargs__(self) -> Any:  # (int, int, int) for pickle, on the way to a worker; int's own has one
        return int(self), self.seed, self.iteration

    def __repr__(self) -> str:
        return f'Draw({int(self)}, seed={self.seed}, iteration={self.iteration})'
