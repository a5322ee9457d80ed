"""What a batch sampler asks of a data set: which sample, and with which randomness.

mmseg's transforms draw from the global generators of a worker, whose state depends on everything that worker loaded
before. A :class:`Draw` brings a seed of its own, so that a sample comes out of its pipeline the same with any number of
workers, and after a resume.
"""
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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

    def __getnewargs__(self) -> tuple[int, int, int]:  # for pickle, on the way to a worker
        return int(self), self.seed, self.iteration

    def __repr__(self) -> str:
        return f'Draw({int(self)}, seed={self.seed}, iteration={self.iteration})'


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Run a block under its own seed for ``random``, numpy and torch's CPU generator, then put the states back.

    Other than :func:`~mmsynth.utils.isolated_random_state` it leaves devices alone: a forked worker may not touch them.
    """
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
