"""Choosing masks for wanted class shares: small cases by hand, then what holds for every choice."""
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmsynth.filtering.mask_choice import MaskChoice, choose_masks, class_shares

ANY = np.nan


def distance(counts: np.ndarray, indices: np.ndarray, target: np.ndarray) -> float:
    wanted = ~np.isnan(target)
    return float(np.linalg.norm((class_shares(counts[indices]) - target)[wanted]))


def test_shares_that_can_be_reached_are_reached() -> None:
    counts = np.array([[100, 0], [90, 10], [80, 20], [100, 0], [0, 100]])
    assert choose_masks(counts, np.array([ANY, 0.1]), 1).tolist() == [1]
    assert choose_masks(counts, np.array([ANY, 1.0]), 1).tolist() == [4]
    assert choose_masks(counts, np.array([ANY, 0.6]), 2).tolist() == [2, 4]  # (20 + 100) / 200
    assert choose_masks(counts, np.array([0.9, 0.1]), 3, max_repeats=3).tolist() == [1, 1, 1]


def test_masks_count_by_their_pixels() -> None:
    counts = np.array([[10, 0], [0, 1], [0, 1], [0, 1], [0, 8]])
    chosen = choose_masks(counts, np.array([ANY, 0.2]), 3)
    assert 0 in chosen and 4 not in chosen  # 2 of 12 pixels; with the large one it would be 9 of 19
    assert class_shares(counts[chosen])[1] == pytest.approx(2 / 12)


def test_an_exchange_repairs_what_adding_one_by_one_got_wrong() -> None:
    """The first pick, exact by itself, is the wrong one of two."""
    counts = np.array([[1, 0], [0, 1], [2, 2]])
    assert choose_masks(counts, np.array([0.5, 0.5]), 2).tolist() == [0, 1]


def test_the_seed_decides_between_equals_only() -> None:
    counts = np.array([[9, 1]] * 20 + [[5, 5]] * 2)
    target = np.array([ANY, 0.5])
    choices = {tuple(choose_masks(counts, target, 5, seed=seed).tolist()) for seed in range(8)}
    assert len(choices) > 4
    assert all({20, 21} < set(choice) for choice in choices)
    assert choose_masks(counts, target, 5, seed=3).tolist() == choose_masks(counts, target, 5, seed=3).tolist()


def test_rare_classes_come_far_nearer_than_by_chance() -> None:
    rng = np.random.default_rng(0)
    counts = np.round(4096 * rng.dirichlet([8, 4, 2, 0.2, 0.1], 300)).astype(int)
    target = np.array([ANY, ANY, ANY, 0.03, 0.015])
    chosen = choose_masks(counts, target, 100, seed=1)
    by_chance = [distance(counts, rng.choice(300, 100, replace=False), target) for _ in range(20)]
    assert distance(counts, chosen, target) < 1e-3 < 0.008 < min(by_chance)


@st.composite
def problems(draw: st.DrawFn) -> dict:
    """Counts, a target that some mask can serve, a count that can be chosen."""
    shape = draw(st.tuples(st.integers(2, 12), st.integers(2, 4)))
    counts = draw(arrays.arrays(np.int64, shape, elements=st.integers(0, 50)))
    counts[0] += 1  # every class is somewhere
    shares = draw(arrays.arrays(np.float64, shape[1], elements=st.floats(0, 1 / shape[1])))
    free = draw(arrays.arrays(np.bool_, shape[1]))
    free[draw(st.integers(0, shape[1] - 1))] = False
    max_repeats = draw(st.integers(1, 3))
    count = draw(st.integers(1, int((counts.sum(1) > 0).sum()) * max_repeats))
    return dict(class_counts=counts, target=np.where(free, ANY, shares), count=count, max_repeats=max_repeats,
                seed=draw(st.integers(0, 5)))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_what_holds_for_every_choice(problem: dict) -> None:
    counts, target, seed = problem['class_counts'], problem['target'], problem['seed']
    chosen = choose_masks(**problem)
    assert len(chosen) == problem['count'] and (np.diff(chosen) >= 0).all()
    assert np.bincount(chosen).max() <= problem['max_repeats']
    assert counts[chosen].sum(1).all()
    rng = np.random.default_rng(seed)  # never further than the random choice of the same seed
    order = rng.permutation(np.flatnonzero(counts.sum(1)))
    drawn = rng.permutation(np.repeat(np.arange(len(order)), problem['max_repeats']))[:problem['count']]
    assert distance(counts, chosen, target) <= distance(counts, order[drawn], target) + 1e-9
    np.testing.assert_array_equal(chosen, choose_masks(**problem | dict(class_counts=counts * 1.0)))


@settings(max_examples=30, deadline=None)
@given(problems())
def test_a_single_mask_is_the_best_of_all(problem: dict) -> None:
    counts, target = problem['class_counts'], problem['target']
    chosen = choose_masks(**problem | dict(count=1))
    best = min(distance(counts, np.array([index]), target) for index in np.flatnonzero(counts.sum(1)))
    assert distance(counts, chosen, target) == pytest.approx(best, abs=1e-12)


def test_a_choice_is_told_as_table_and_json() -> None:
    counts = np.array([[90, 10, 0], [50, 50, 0], [100, 0, 0]])
    choice = MaskChoice.of(('field', 'road', 'sea'), counts, np.array([1, 1]), dict(road=0.4))
    assert choice.table().splitlines() == [
        'class   before   wanted  reached',
        'field   80.00%      any   50.00%',
        'road    20.00%   40.00%   50.00%',
        'sea      0.00%      any    0.00%']
    told = json.loads(choice.to_json())
    assert (told['count'], told['distinct']) == (2, 1)
    assert told['shares']['road'] == dict(before=0.2, wanted=0.4, reached=0.5)
    assert told['shares']['sea']['wanted'] is None


@pytest.mark.parametrize('change, message', [
    (dict(target=np.array([0.1])), r'`class_counts` must be \(N, K\) and `target` \(K,\), got shapes \(3, 2\) and'),
    (dict(count=0), '`count` and `max_repeats` must be at least 1, got 0 and 1'),
    (dict(max_repeats=0), 'must be at least 1, got 1 and 0'),
    (dict(target=np.array([ANY, ANY])), '`target` must want a share of at least one class'),
    (dict(target=np.array([0.6, 0.5])), 'together at most 1'),
    (dict(target=np.array([-0.1, ANY])), 'each at least 0'),
    (dict(class_counts=np.array([[1, 2], [3, -1], [0, 0]])), '`class_counts` must not be negative, got -1'),
    (dict(count=3), r'`count` = 3 masks cannot be chosen from 2 with labelled pixels, each at most 1 times; raise'),
    (dict(class_counts=np.array([[1, 0], [2, 0], [0, 0]])), '`target` wants class 1, which no mask shows'),
])
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = dict(class_counts=np.array([[1, 2], [3, 4], [0, 0]]), target=np.array([ANY, 0.5]), count=1) | change
    with pytest.raises(ValueError, match=message):
        choose_masks(**arguments)
