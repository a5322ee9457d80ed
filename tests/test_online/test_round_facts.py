"""What is told of a round."""
import math

import numpy as np
import pytest
from toy_generators import sample

from mmsynth.online.facts import class_pixels, count_sample, merge_facts, preview, round_line, round_scalars
from mmsynth.online.orders import Answer
from mmsynth.online.sharing import join_answers
from mmsynth.pool.rounds import Round

PALETTE = [(0, 0, 0), (9, 9, 9), (99, 99, 99)]


def facts_of_two() -> dict:
    facts = dict(requested=3, failed={'ValueError: x': 1}, not_finite=0)
    trace = [dict(step=0, loss_before=1.0, loss_after=0.5), dict(step=1, loss_before=3.0, loss_after=1.5),
             dict(step=2, loss_before=math.nan, loss_after=9.0), dict(step=3, sigma=0.1)]
    count_sample(facts, dict(name='CRFM', trace=trace), dict(keep=True, valid=0.9))
    count_sample(facts, None, dict(keep=False, valid=0.3))
    return facts


def test_scalars_are_means_of_what_was_counted() -> None:
    scalars = round_scalars(Round(4, 60, ('a', ), ('b', 'c'), 2), facts_of_two(), live=7, seconds=1.5)
    assert scalars == {
        'online/published': 1, 'online/dropped': 2, 'online/retired': 2, 'online/live': 7, 'online/seconds': 1.5,
        'online/filter_kept': 0.5, 'online/trusted': pytest.approx(0.6), 'online/loss_before': 2.0,
        'online/loss_after': 1.0}


def test_the_line_tells_what_there_is() -> None:
    line = round_line(Round(4, 60, ('a', ), ('b', 'c'), 2), facts_of_two(), live=7, seconds=1.5)
    assert line == ('synthesis round 4: 3 masks, 1 new samples; filter keeps 50.0% and trusts 60.0% of the pixels; '
                    'guidance loss 2.0000 → 1.0000; 1 failed; 7 live, 2 retired; used from iteration 60; 1.5 s')
    assert round_line(Round(0, 0, ()), dict(requested=2, not_finite=2, failed={}), live=0, seconds=0) == (
        'synthesis round 0: 2 masks, 0 new samples; 2 not finite; 0 live, 0 retired; used from iteration 0; 0.0 s')


def test_shares_add_up() -> None:
    merged = merge_facts([facts_of_two(), dict(requested=1, failed={'ValueError: x': 2, 'y': 1}), facts_of_two()])
    assert merged['failed'] == {'ValueError: x': 4, 'y': 1}
    assert merged['requested'] == 7 and merged['loss_before'] == 8.0 and merged['guided_steps'] == 4


def test_ranks_make_one_round_in_the_order_of_ids() -> None:
    parts = [Answer(3, (sample('0'), sample('2')), dict(requested=2), seconds=1.),
             Answer(3, (sample('1'), ), dict(requested=2), seconds=2.), Answer(3, error='RuntimeError: gone')]
    joined = join_answers(parts)
    assert [item.id for item in joined.samples] == ['0', '1', '2'] and joined.error is None
    assert joined.facts == dict(requested=4, failed={'RuntimeError: gone': 1}) and joined.seconds == 2.
    assert join_answers(parts[2:] * 2).error == 'RuntimeError: gone'


def test_classes_are_counted_on_what_is_trained_on() -> None:
    filtered = np.full((4, 6), 255, np.uint8)
    assert class_pixels([sample('0', 1), sample('1', 2)], 3) == [0, 12, 12]
    assert class_pixels([sample('0', 1, filtered=filtered)], 3) == [0, 0, 0]


@pytest.mark.parametrize('filtered', [None, np.full((4, 6), 255, np.uint8)])
def test_the_preview_has_a_column_for_the_filter_if_it_ran(filtered: np.ndarray | None) -> None:
    plain, shown = preview([sample('0')], PALETTE), preview([sample('0', filtered=filtered)], PALETTE)
    assert shown.dtype == np.uint8 and shown.ndim == 3
    assert (shown.shape[1] > plain.shape[1]) == (filtered is not None)
