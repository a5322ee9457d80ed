"""Objects pasted into masks: found whole, placed where they may stand, seeded and recorded."""
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_masks import CLASSES, MemoryMasks, made, masks

from mmsynth.datasets.mask_sources.pasted import PastedMasks, cut_out, find_objects, places_for

FIELD, ROAD, WATER = range(3)
EMPTY = np.zeros((8, 8), np.uint8)


def pond() -> np.ndarray:
    """A field with a pond of three pixels in an L."""
    mask = EMPTY.copy()
    mask[1, 1] = mask[2, 1] = mask[2, 2] = WATER
    return mask


def paste(stored: list[np.ndarray], **options: object) -> PastedMasks:
    return PastedMasks(MemoryMasks(stored), **dict(classes=['water'], onto=['field']) | options)


# ---- objects


def test_objects_are_the_connected_components_in_reading_order():
    mask = np.uint8([[0, 2, 0, 0, 1], [2, 0, 0, 2, 2], [0, 0, 0, 0, 2], [2, 0, 255, 0, 0]])
    objects = find_objects(mask, 2)
    assert [(thing.number, thing.first, thing.corner, thing.size, thing.pixels) for thing in objects] == [
        (0, (0, 1), (0, 0), (2, 2), 2), (1, (1, 3), (1, 3), (2, 2), 3), (2, (3, 0), (3, 0), (1, 1), 1)]
    assert cut_out(mask, objects[1]).tolist() == [[True, True], [False, True]]
    assert [thing.number for thing in find_objects(mask, 2, min_pixels=2, max_pixels=2)] == [0]


@settings(deadline=None)
@given(masks())
def test_the_objects_of_a_class_are_its_pixels(mask):
    rebuilt = np.zeros(mask.shape, int)
    for thing in find_objects(mask, WATER):
        shape = cut_out(mask, thing)
        assert shape.sum() == thing.pixels and shape.shape == thing.size
        (top, left), (height, width) = thing.corner, thing.size
        rebuilt[top:top + height, left:left + width] += shape
    assert np.array_equal(rebuilt, mask == WATER)


@settings(deadline=None)
@given(masks(values=(0, 1)), masks(max_side=5, values=(0, 1)), st.floats(0.05, 1))
def test_places_are_all_those_with_enough_free_pixels(free, shape, min_visible):
    free, shape = free > 0, shape > 0
    shape[0, 0] = True
    (height, width), (h, w) = free.shape, shape.shape
    expected = [[top, left] for top in range(height - h + 1) for left in range(width - w + 1)
                if (free[top:top + h, left:left + w] & shape).sum() >= min_visible * shape.sum() - 1e-6]
    assert places_for(shape, free, min_visible).tolist() == expected


# ---- pasting


def test_an_object_comes_whole_and_is_recorded():
    results = made(paste([EMPTY, pond()], num_objects=1))
    mask, origin, prompt = results['m0+paste']
    thing, = origin['objects']
    assert origin['source'] == 'paste' and origin['of'] == 'm0'
    assert {key: thing[key] for key in ('class', 'donor', 'component', 'pixels')} == {
        'class': 'water', 'donor': 'm1', 'component': 0, 'pixels': 3}
    shape = np.bool_([[1, 0], [1, 1]])
    shape = np.rot90(shape[:, ::-1] if thing['flip'] else shape, thing['quarter_turns'])
    top, left = thing['position']
    expected = EMPTY.copy()
    expected[top:top + 2, left:left + 2][shape] = WATER
    assert mask == expected.tolist() and prompt == 'a satellite image of field, water'


def test_no_mask_gets_an_object_of_its_own():
    mask, origin, _ = made(paste([EMPTY, pond()]))['m1+paste']
    assert origin['objects'] == [] and mask == pond().tolist()


@settings(deadline=None)
@given(st.lists(masks(min_side=3), min_size=2, max_size=4), st.integers(0, 3), st.sampled_from([0.3, 1.0]))
def test_only_allowed_pixels_change_and_only_into_the_class(stored, seed, min_visible):
    stored = [*stored, pond()]
    dataset = paste(stored, num_objects=(0, 5), min_visible=min_visible, num_variants=2, seed=seed)
    results = made(dataset)
    assert len(results) == 2 * len(stored) and json.loads(json.dumps(list(results.values())))
    for index, before in enumerate(stored):
        for name in (f'm{index}+paste', f'm{index}+paste2'):
            after, origin, _ = results[name]
            changed = np.array(after) != before
            assert (before[changed] == FIELD).all() and (np.array(after)[changed] == WATER).all()
            assert changed.sum() == sum(thing['pixels'] for thing in origin['objects'])
            assert len(origin['objects']) <= 5 and f'm{index}' not in {thing['donor'] for thing in origin['objects']}


@settings(deadline=None)
@given(st.integers(0, 5))
def test_a_mask_follows_from_the_seed_whatever_is_made_before(seed):
    stored = [*np.random.default_rng(seed).integers(0, 3, (4, 9, 9), dtype=np.uint8), pond()]
    one, other = paste(stored, num_variants=2, seed=seed), paste(stored, num_variants=3, seed=seed)
    backwards = {other[index]['sample_id']: other[index]['gt_seg_map'].tolist() for index in reversed(range(15))}
    assert all(backwards[name] == mask for name, (mask, _, _) in made(one).items())


def test_seeds_and_variants_differ():
    first, second = (made(paste([EMPTY, pond()], num_variants=8, seed=seed)) for seed in (0, 1))
    masks_of_m0 = [json.dumps(first[name][0]) for name in first if name.startswith('m0')]
    assert len(set(masks_of_m0)) > 4 and first != second


def test_size_limits_choose_the_objects():
    stored = [EMPTY, pond(), np.where(np.arange(64).reshape(8, 8) < 24, WATER, FIELD).astype(np.uint8)]
    assert paste(stored).bank.count() == {WATER: 2}
    assert paste(stored, max_pixels=3).bank.count() == paste(stored, min_pixels=4).bank.count() == {WATER: 1}
    sizes = {thing['pixels'] for name, (_, origin, _) in made(paste(stored, min_pixels=4, num_objects=1)).items()
             for thing in origin['objects']}
    assert sizes == {24}


def test_every_class_is_drawn_as_often_however_many_objects_it_has():
    crowded = EMPTY.copy()
    crowded[::2, ::2] = ROAD
    dataset = paste([EMPTY, pond(), crowded], classes=['water', 'road'], num_objects=1, num_variants=200)
    drawn = [thing['class'] for name, (_, origin, _) in made(dataset).items() if name.startswith('m0')
             for thing in origin['objects']]
    assert len(drawn) == 200 and 60 < drawn.count('water') < 140


def test_what_does_not_fit_in_full_may_be_cut():
    strip = np.full((8, 8), ROAD, np.uint8)
    strip[3] = FIELD  # one row is free: an upright L of three pixels does not fit, two of its pixels do
    assert made(paste([strip, pond()]))['m0+paste'][1]['objects'] == []
    cut = made(paste([strip, pond()], min_visible=0.6, num_objects=1))['m0+paste'][1]['objects']
    assert [thing['pixels'] for thing in cut] == [2]


@settings(deadline=None)
@given(masks(min_side=3, max_side=16, values=(0, 0, 0, 0, 0, 0, 0, 0, 0, 1)), st.integers(1, 2))
def test_a_margin_keeps_objects_apart_from_all_but_the_border(before, margin):
    mask, origin, _ = made(paste([before, pond()], margin=margin, num_objects=4))['m0+paste']
    mask = np.array(mask)
    for row, column in np.argwhere(mask == WATER):
        around = mask[max(0, row - margin):row + margin + 1, max(0, column - margin):column + margin + 1]
        assert ROAD not in around
    assert [thing.pixels for thing in find_objects(mask, WATER)] == [3] * len(origin['objects'])


def test_objects_larger_than_the_mask_are_left_out():
    assert made(paste([np.zeros((2, 1), np.uint8), pond()]))['m0+paste'][1]['objects'] == []


def test_donors_may_be_another_data_set():
    donors = MemoryMasks([pond()], names=['donor'])
    origin = made(paste([EMPTY], donors=donors, num_objects=2))['m0+paste'][1]
    assert [thing['donor'] for thing in origin['objects']] == ['donor'] * 2


# ---- mistakes


@pytest.mark.parametrize('options, message', [
    (dict(classes=['lake']), "`classes` has 'lake', which the data set does not know; its classes are "
     'field, road, water.'),
    (dict(onto=['meadow']), "`onto` has 'meadow', which the data set does not know"),
    (dict(classes='water'), "`classes` must list at least one class name, got 'water'"),
    (dict(onto=[]), '`onto` must list at least one class name, got []'),
    (dict(onto=['field', 'water']), '`classes` and `onto` both name water'),
    (dict(classes=['road']), 'none of the 2 donors has an object of road with at least 1 pixels'),
    (dict(min_pixels=4, max_pixels=9), 'an object of water with at least 4 and at most 9 pixels'),
    (dict(num_objects=0), '`num_objects` must be a number from 1 or (lowest, highest), got (0, 0)'),
    (dict(num_objects=(2, 1)), '`num_objects` must be'),
    (dict(min_pixels=5, max_pixels=4), '`min_pixels` must be at least 1 and at most `max_pixels`, got 5 and 4'),
    (dict(margin=-1), '`margin` must be at least 0 pixels, got -1'),
    (dict(min_visible=0.0, num_objects=(3, 2)), '`min_visible` must be in (0, 1], got 0.0'),
    (dict(donors=MemoryMasks([EMPTY], classes=CLASSES[:2])), "`donors` has the classes ('field', 'road'), the data"),
])  # yapf: disable
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        paste([EMPTY, pond()], **options)
