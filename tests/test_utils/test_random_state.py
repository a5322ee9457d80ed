"""A block under its own seed leaves no trace in the global random state."""
import random

import numpy as np
import pytest
import torch

from mmsynth.utils import isolated_random_state


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_the_state_outside_goes_on_as_if_nothing_was_drawn() -> None:
    seed_all(0)
    expected = [draw(), draw()]
    seed_all(0)
    first = draw()
    with isolated_random_state(1):
        draw()
    assert [first, draw()] == expected


def test_the_block_is_that_of_its_seed() -> None:
    seed_all(4)
    expected = draw()
    with isolated_random_state(4):
        assert draw() == expected
    with isolated_random_state(5):
        assert draw() != expected


def test_the_state_comes_back_after_an_error() -> None:
    seed_all(0)
    expected = draw()
    seed_all(0)
    with pytest.raises(RuntimeError, match='inside'), isolated_random_state(2**63 - 1):  # numpy's seeds are shorter
        draw()
        raise RuntimeError('inside')
    assert draw() == expected
