"""Masks flipped, turned and zoomed: exact where they are said to be, seeded, and named by what was done."""
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_masks import MemoryMasks, made, masks

from mmsynth.datasets.mask_sources.transformed import TransformedMasks, TransformStep

MOVES = st.builds(TransformStep, flip=st.booleans(), quarter_turns=st.integers(0, 3))
CORNER = np.uint8([[1, 2, 0], [0, 0, 255]])


def free(**changes: object) -> TransformStep:
    return TransformStep(**dict(flip=False, quarter_turns=0) | changes)


@pytest.mark.parametrize('name, mask', [
    ('hflip', [[0, 2, 1], [255, 0, 0]]), ('vflip', [[0, 0, 255], [1, 2, 0]]), ('rot180', [[255, 0, 0], [0, 2, 1]]),
    ('rot90', [[0, 255], [2, 0], [1, 0]]), ('rot270', [[0, 1], [0, 2], [255, 0]]),
    ('hflip-rot90', [[1, 0], [2, 0], [0, 255]]), ('hflip-rot270', [[255, 0], [0, 2], [0, 1]]),
])  # yapf: disable
def test_every_move_is_what_it_is_called(name, mask):
    steps = {step.name: step for step in (free(flip=flip, quarter_turns=turns) for flip in (False, True)
                                          for turns in range(4))}
    assert steps[name](CORNER)[0].tolist() == mask


@settings(deadline=None)
@given(masks(), MOVES)
def test_flips_and_quarter_turns_keep_every_pixel(mask, step):
    before = mask.copy()
    changed, _ = step(mask)
    assert np.array_equal(np.bincount(changed.ravel(), minlength=256), np.bincount(mask.ravel(), minlength=256))
    assert np.array_equal(mask, before) and changed.dtype == np.uint8 and changed.flags.c_contiguous


@settings(deadline=None)
@given(masks(min_side=2), st.sampled_from(['reflect', 'ignore']), st.sampled_from([(90, 1), (180, 2), (-90, 3)]))
def test_a_free_turn_by_right_angles_is_the_exact_one(mask, fill, turn):
    side = min(mask.shape)
    square = mask[:side, :side]
    assert np.array_equal(free(angle=float(turn[0]), fill=fill)(square)[0], np.rot90(square, turn[1]))


def test_a_zoom_by_two_repeats_pixels_of_the_part_that_the_shift_names():
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for shift, part in (((-1, -1), mask[:2, :2]), ((1, -1), mask[2:, :2]), ((1, 1), mask[2:, 2:])):
        zoomed, _ = free(scale=2.0, shift=shift)(mask)
        assert np.array_equal(zoomed, part.repeat(2, 0).repeat(2, 1))


def test_what_comes_from_outside_is_ignored_or_mirrored():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 1
    ignored, reflected = (free(scale=0.5, fill=fill)(mask)[0] for fill in ('ignore', 'reflect'))
    assert (ignored == 255).sum() == 48 and (ignored == 0).sum() == (ignored == 1).sum() == 8
    assert (ignored[2:6, 2:6] != 255).all() and set(np.unique(reflected)) == {0, 1}


@settings(deadline=None)
@given(masks(), MOVES, st.floats(-180, 180), st.floats(0.1, 10), st.sampled_from(['reflect', 'ignore']))
def test_turns_and_zooms_bring_in_no_new_class(mask, move, angle, scale, fill):
    step = free(flip=move.flip, quarter_turns=move.quarter_turns, angle=angle, scale=scale, fill=fill)
    changed, origin = step(mask)
    assert set(np.unique(changed)) <= {*np.unique(mask).tolist(), *([255] if fill == 'ignore' else [])}
    assert changed.shape == (mask.shape if move.quarter_turns % 2 == 0 else mask.shape[::-1])
    assert json.loads(json.dumps(origin)) == origin


# ---- the data set


def test_seven_variants_are_all_the_flips_and_turns():
    source = TransformedMasks(MemoryMasks([CORNER[:, :2]]), num_variants=7)
    names = ('hflip', 'vflip', 'rot90', 'rot180', 'rot270', 'hflip-rot90', 'hflip-rot270')
    results = made(source)
    assert set(results) == {f'm0+{name}' for name in names}
    assert len({json.dumps(mask) for mask, _, _ in results.values()}) == 7


def test_originals_come_first_then_variant_by_variant():
    source = TransformedMasks(MemoryMasks([CORNER, CORNER]), 2, quarter_turns=False, keep_original=True)
    ids = [source.get_data_info(index)['sample_id'] for index in range(len(source))]
    assert ids[:2] == ['m0', 'm1'] and [name.split('+')[0] for name in ids[2:]] == ['m0', 'm1', 'm0', 'm1']
    assert len(set(ids)) == 6 and [source.get_data_info(index)['sample_idx'] for index in range(6)] == [*range(6)]
    assert made(source)['m0'][1] is None and source[-1]['sample_id'] == ids[-1]
    with pytest.raises(IndexError):
        source[6]


@settings(deadline=None)
@given(st.integers(0, 5), st.booleans())
def test_a_mask_follows_from_seed_and_id_alone(seed, turned):
    options = dict(max_angle=30.0, scale_range=(0.5, 2.0)) if turned else {}
    stored = list(np.random.default_rng(seed).integers(0, 3, (5, 6, 7), dtype=np.uint8))
    names = [f'tile{index}' for index in range(5)]
    few = made(TransformedMasks(MemoryMasks(stored, names=names), 2, seed=seed, **options))
    many = made(TransformedMasks(MemoryMasks(stored[::-1], names=names[::-1]), 4, seed=seed, **options))
    assert len(few) == 10 and len(many) == 20
    assert few == {name: many[name] for name in few}


def test_another_seed_gives_other_variants():
    dataset = MemoryMasks([np.uint8([[0, 1], [2, 255]])] * 20)
    first, second = (set(made(TransformedMasks(dataset, seed=seed))) for seed in (0, 1))
    assert first != second


def test_free_variants_stay_within_their_ranges_and_are_recorded():
    source = TransformedMasks(MemoryMasks([CORNER]), 40, flips=False, quarter_turns=False, max_angle=20,
                              scale_range=(0.5, 2), fill='ignore')
    origins = [origin for _, origin, _ in made(source).values()]
    angles, scales = ([origin[key] for origin in origins] for key in ('angle', 'scale'))
    assert len(origins) == 40
    assert -20 <= min(angles) < -10 and 10 < max(angles) <= 20 and 0.5 <= min(scales) < 0.8 and 1.3 < max(scales) <= 2
    assert origins[0].keys() == {'source', 'of', 'flip', 'quarter_turns', 'angle', 'scale', 'shift', 'fill'}
    name = next(iter(made(source)))
    assert re.fullmatch(r'm0\+1-turn-?[\d.]+-zoom[\d.]+', name)


# ---- mistakes


@pytest.mark.parametrize('options, message', [
    (dict(max_angle=181), r'`max_angle` must be in [0, 180] degrees, got 181'),
    (dict(scale_range=(2, 1)), '`scale_range` must be (lowest, highest) zoom, both in [0.1, 10], got (2, 1)'),
    (dict(scale_range=(0, 1)), '`scale_range` must be'),
    (dict(fill='zeros'), "`fill` must be one of reflect, ignore, got 'zeros'"),
    (dict(num_variants=4, quarter_turns=False), '`num_variants` is 4, but `flips` and `quarter_turns` give only 3'),
    (dict(flips=False, quarter_turns=False), 'give only 0 different variants'),
    (dict(num_variants=0), '`num_variants` must be at least 1, got 0'),
])  # yapf: disable
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TransformedMasks(MemoryMasks([CORNER]), **options)
