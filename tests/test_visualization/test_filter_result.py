"""What the manifest's filter entries add up to."""
import pytest
from pool_samples import filter_entry, write_pool

from mmsynth.visualization.filter_result import count_reasons, read_filter, sum_classes
from mmsynth.visualization.pool_report import trusted_pixels


def results(root, entries):
    return [read_filter(record) for record in write_pool(root, [{'filter': entry} for entry in entries]).records]


def test_sums_over_samples_by_hand(tmp_path):
    found = results(tmp_path / 'pool', [
        filter_entry(0, gone=48, loss={'ground': 0.5}),
        filter_entry(1, gone=192, keep=False),
        filter_entry(2, pixels={'water': 100, 'ground': 64}, removed={'water': 25.5}, loss={'ground': 2.})])
    ground, house, water = sum_classes(found, ('ground', 'house', 'water'))
    assert (ground.samples, ground.pixels, ground.removed, ground.trusted) == (2, 256, 48, 208)
    assert ground.rate == 48 / 256 and ground.loss == pytest.approx((0.5 * 192 + 2 * 64) / 256)
    assert (house.rate, house.trusted) == (1, 0)  # its only sample was dropped
    assert (water.trusted, water.loss) == (74.5, None)
    assert sum_classes(found, ('never',))[0].rate is None
    assert trusted_pixels(found, ('ground', 'house', 'water')) == [208, 0, 74]


def test_reasons_that_differ_in_a_share_are_one(tmp_path):
    found = results(tmp_path / 'pool', [
        filter_entry(0, reason='91% valid'), filter_entry(1), filter_entry(2, reason='84.5% valid'),
        filter_entry(3, reason='84 % valid'), filter_entry(4, keep=False, valid=0.42)])
    assert count_reasons(found) == [(True, '…% valid', 2), (True, 'weak class house', 1), (True, '… % valid', 1),
                                    (False, '… % valid, below 80 %', 1)]


@pytest.mark.parametrize('entry', [None, {}, {'kept': True}, {'keep': 1, 'pixels': {}, 'removed': {}},
                                   {'keep': True, 'pixels': [1], 'removed': {}}])
def test_other_entries_are_no_result(tmp_path, entry):
    assert results(tmp_path / 'pool', [entry]) == [None]


def test_entries_from_outside_do_not_break_the_sums(tmp_path):
    entry = filter_entry(0, hardness=None, pixels={'ground': 'x', 'house': 3}, removed={'house': None})
    found, = results(tmp_path / 'pool', [entry | dict(valid='much', reason='', loss=[])])
    assert (found.valid, found.hardness, dict(found.pixels), found.loss) == (None, None, {'house': 3}, {})
    assert found.reason == 'no reason recorded' and sum_classes([found], ('house',))[0].trusted == 3
