"""Requests served in the training process, results of several ranks, and what is logged of a round."""
import math

import numpy as np
import pytest
from torch import nn
from toy_generators import build, sample

from mmsynth.online.request import InProcess, SynthesisRequest, SynthesisResult, describe, join_results
from mmsynth.online.statistics import class_pixels, count_sample, merge_statistics, preview, round_line, round_scalars
from mmsynth.pool.rounds import Round

PALETTE = [(0, 0, 0), (9, 9, 9), (99, 99, 99)]
ROUND = Round(4, 60, ('a', ), ('b', 'c'), 2)


def statistics_of_two() -> dict:
    statistics = dict(requested=3, failed={'ValueError: x': 1}, not_finite=0)
    trace = [dict(step=0, loss_before=1.0, loss_after=0.5), dict(step=1, loss_before=3.0, loss_after=1.5),
             dict(step=2, loss_before=math.nan, loss_after=9.0), dict(step=3, sigma=0.1)]
    count_sample(statistics, dict(name='CRFM', trace=trace), dict(keep=True, valid=0.9))
    count_sample(statistics, None, dict(keep=False, valid=0.3))
    return statistics


def test_in_process_the_segmentor_itself_is_used() -> None:
    seen = []
    backend = InProcess(lambda request: seen.append(request) or SynthesisResult(request.round, [sample('a')]))
    backend.start()
    backend.submit(SynthesisRequest(2, nn.Linear(1, 1)))
    [result] = backend.collect()
    assert seen[0].segmentor is not None and result.round == 2 and result.error is None and result.seconds >= 0
    assert backend.collect() == [] and backend.idle and backend.ended is None


def test_in_process_an_error_is_a_result_but_an_interruption_is_not() -> None:
    backend = InProcess(build({5: 'raise'}))
    backend.submit(SynthesisRequest(5))
    [result] = backend.collect()
    assert result.error == result.failure == 'ValueError: mask 5 cannot be loaded' and not result.samples

    def interrupted(request: SynthesisRequest) -> SynthesisResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InProcess(interrupted).submit(SynthesisRequest(0))


def test_a_long_error_is_cut() -> None:
    assert len(describe(ValueError('x' * 10**6))) < 1100


@pytest.mark.parametrize('samples, statistics, failure', [
    ([sample('a')], dict(failed={'E: x': 3}), None),
    ([], dict(failed={'E: x': 3}, not_finite=1), 'no image could be generated: 3 x E: x; 1 x values'),
    ([], dict(failed={}, not_finite=4), 'no image could be generated: 4 x values'),
    ([], dict(failed={'E: x': 3}, filtered=1, filter_kept=0), None),  # the filter dropped the rest
    ([], dict(failed={}, not_finite=0), None),
])
def test_a_round_in_which_every_mask_failed_has_failed(samples: list, statistics: dict, failure: str | None) -> None:
    found = SynthesisResult(0, samples, statistics).failure
    assert found == failure if failure is None else found.startswith(failure)


def test_scalars_are_means_of_what_was_counted() -> None:
    assert round_scalars(ROUND, statistics_of_two(), live=7, seconds=1.5) == {
        'online/published': 1, 'online/dropped': 2, 'online/retired': 2, 'online/live': 7, 'online/seconds': 1.5,
        'online/filter_kept': 0.5, 'online/trusted': pytest.approx(0.6), 'online/loss_before': 2.0,
        'online/loss_after': 1.0}


def test_the_line_holds_what_there_is() -> None:
    assert round_line(ROUND, statistics_of_two(), live=7, seconds=1.5) == (
        'synthesis round 4: 3 masks, 1 new samples; filter keeps 50.0% and trusts 60.0% of the pixels; '
        'guidance loss 2.0000 → 1.0000; 1 failed; 7 live, 2 retired; used from iteration 60; 1.5 s')
    assert round_line(Round(0, 0, ()), dict(requested=2, not_finite=2, failed={}), live=0, seconds=0) == (
        'synthesis round 0: 2 masks, 0 new samples; 2 not finite; 0 live, 0 retired; used from iteration 0; 0.0 s')


def test_shares_add_up() -> None:
    merged = merge_statistics([statistics_of_two(), dict(requested=1, failed={'ValueError: x': 2, 'y': 1}),
                               statistics_of_two()])
    assert merged['failed'] == {'ValueError: x': 4, 'y': 1}
    assert merged['requested'] == 7 and merged['loss_before'] == 8.0 and merged['guided_steps'] == 4


def test_ranks_make_one_round_in_the_order_of_ids() -> None:
    parts = [SynthesisResult(3, (sample('0'), sample('2')), dict(requested=2), seconds=1.),
             SynthesisResult(3, (sample('1'), ), dict(requested=2), seconds=2.),
             SynthesisResult(3, error='RuntimeError: gone')]
    joined = join_results(parts)
    assert [item.id for item in joined.samples] == ['0', '1', '2'] and joined.failure is None
    assert joined.statistics == dict(requested=4, failed={'RuntimeError: gone': 1}) and joined.seconds == 2.
    assert join_results(parts[2:] * 2).failure == 'RuntimeError: gone'


def test_classes_are_counted_on_the_label_that_is_trained_on() -> None:
    filtered = np.full((4, 6), 255, np.uint8)
    assert class_pixels([sample('0', 1), sample('1', 2)], 3) == [0, 12, 12]
    assert class_pixels([sample('0', 1, filtered=filtered)], 3) == [0, 0, 0]


def test_the_preview_has_a_column_for_the_filter_if_it_ran() -> None:
    plain = preview([sample('0')], PALETTE)
    filtered = preview([sample('0', filtered=np.full((4, 6), 255, np.uint8))], PALETTE)
    assert plain.dtype == np.uint8 and plain.ndim == 3 and filtered.shape[1] > plain.shape[1]
