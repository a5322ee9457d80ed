"""The order of synthetic samples: epochs in which each live sample comes once, in a pool that changes."""
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsynth.datasets.samplers.walk import SyntheticWalk
from mmsynth.pool.reader import Change


def walk(changes, per_batch=1, seed=0):
    return SyntheticWalk(seed, lambda iterations: per_batch * iterations, [Change(*change) for change in changes])


def drawn(walk, first, last):
    return [number for iteration in range(first, last) for number in walk.numbers(iteration)]


def test_every_sample_comes_once_per_epoch_in_an_order_of_its_own():
    numbers = drawn(walk([(0, range(7))]), 0, 35)
    epochs = [tuple(numbers[start:start + 7]) for start in range(0, 35, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 5
    assert epochs[0] == (3, 0, 4, 2, 1, 6, 5)  # as in earlier versions: resumed runs depend on it
    assert numbers == drawn(walk([(0, range(7))]), 0, 35) != drawn(walk([(0, range(7))], seed=1), 0, 35)


def test_orders_are_uniform():
    """Each of three samples is first in about a third of the epochs: 3 standard deviations of 3000 draws."""
    numbers = np.array(drawn(walk([(0, range(3))]), 0, 9000)).reshape(-1, 3)
    assert (np.abs(np.bincount(numbers[:, 0]) - 1000) < 3 * np.sqrt(3000 * 2 / 9)).all()
    assert Counter(map(tuple, numbers.tolist())).keys() == {tuple(order) for order in numbers.tolist()}
    assert len(set(map(tuple, numbers.tolist()))) == 6


def test_a_batch_may_go_around_a_small_pool():
    assert Counter(walk([(0, (5, ))], per_batch=3).numbers(0)) == {5: 3}
    assert Counter(walk([(0, (5, 6))], per_batch=5).numbers(0)).keys() == {5, 6}


def test_the_epoch_goes_on_when_samples_join():
    joined = walk([(0, range(10)), (4, range(10, 20))])
    before, rest = drawn(joined, 0, 4), drawn(joined, 4, 60)
    end = next(end for end in range(len(rest)) if all(sorted(rest[start:start + 20]) == list(range(20))
                                                      for start in (end, end + 20)))  # where whole epochs begin
    epoch = before + rest[:end]
    assert len(set(epoch)) == len(epoch) and set(range(10)) <= set(epoch)  # nobody twice, and all of the old ones
    assert 10 < len(epoch) < 20  # some of the new ones too


def test_the_epoch_goes_on_when_samples_leave():
    left = walk([(0, range(10)), (4, (), tuple(range(5)))])
    before, rest = drawn(left, 0, 4), drawn(left, 4, 30)
    remaining = set(range(5, 10)) - set(before)
    assert set(rest[:len(remaining)]) == remaining
    assert sorted(rest[len(remaining):len(remaining) + 5]) == list(range(5, 10))


def test_nothing_is_drawn_or_made_up_for_while_nothing_is_live():
    empty = walk([(3, (0, 1)), (6, (), (0, 1)), (9, (2, ))], per_batch=2)
    assert [len(empty.numbers(iteration)) for iteration in range(12)] == [0] * 3 + [2] * 3 + [0] * 3 + [2] * 3
    assert [empty.drawn_before(iteration) for iteration in (0, 3, 6, 9, 12)] == [0, 0, 6, 6, 12]
    assert walk([]).numbers(5) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 4)), max_size=6), st.integers(0, 3))
def test_changes_later_on_do_not_touch_what_was_drawn(steps, per_batch):
    """Whatever happens to the pool: draws are live, as many as asked, no sample much ahead; the past stays."""
    changes, iteration, total, live = [], 0, 0, []
    for gap, join, leave in steps:
        iteration += gap
        retired, live = live[:leave], live[leave:]
        changes.append((iteration, tuple(range(total, total + join)), tuple(retired)))
        live += range(total, total + join)
        total += join
    whole = walk(changes, per_batch)
    for end in range(iteration + 10):
        known = walk([change for change in changes if change[0] <= end], per_batch)
        assert known.numbers(end) == whole.numbers(end) and known.drawn_before(end) == whole.drawn_before(end)
        assert set(whole.numbers(end)) <= set(whole.live(end).tolist())
        assert len(whole.numbers(end)) == (per_batch if len(whole.live(end)) else 0)
        assert whole.drawn_before(end + 1) == whole.drawn_before(end) + len(whole.numbers(end))
    if len(live) and per_batch:
        counts = Counter(drawn(whole, iteration, iteration + 8 * len(live)))
        assert max(counts.values()) - min(counts[number] for number in live) <= 2
