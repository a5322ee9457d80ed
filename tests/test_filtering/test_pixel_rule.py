"""The rule on losses written by hand: hard, soft, among siblings, without a mean; then the message of each mistake."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmsynth.filtering import ClassLosses, PixelRule
from mmsynth.filtering.pixel_rule import soft_weight

LOSSES = ClassLosses(('field', 'road', 'water'), (1.0, 2.0, None), (100, 100, 0))
MASK = np.array([[0, 0, 1, 1, 255]], np.uint8)
LOSS = np.array([[1.25, 1.3, 2.5, 5.0, 0.0]], np.float32)


def rule(**options) -> PixelRule:
    return PixelRule(LOSSES, **options)


def test_a_pixel_at_the_margin_is_trusted_one_above_is_not() -> None:
    found = rule().decide([LOSS], MASK)[0]
    assert found.label.tolist() == [[0, 255, 1, 255, 255]] and found.label.dtype == np.uint8 and found.weight is None
    entry = found.entry
    assert (entry['pixels'], entry['removed']) == ({'field': 2, 'road': 2}, {'field': 1, 'road': 1})
    assert entry['valid'] == pytest.approx(2 / 5) and not entry['keep'] and entry['reason'].startswith('40 % valid')
    assert entry['loss'] == pytest.approx({'field': 1.275, 'road': 3.75})
    assert entry['hardness'] == pytest.approx((1.275 / 1 + 3.75 / 2) / 2)


def test_a_weak_class_keeps_a_sample_while_a_pixel_of_it_is_left() -> None:
    entry = rule(weak_classes=['road']).decide([LOSS], MASK)[0].entry
    assert (entry['keep'], entry['reason']) == (True, 'weak class road')
    worse = np.array([[1, 1, 3, 3, 0]], np.float32)
    assert not rule(weak_classes=['road']).decide([worse], MASK)[0].entry['keep']


def test_the_share_must_be_above_the_minimum() -> None:
    mask, good = np.zeros((1, 5), np.uint8), np.array([[0, 0, 0, 0, 9]], np.float32)
    assert not rule(min_valid=0.8).decide([good], mask)[0].entry['keep']
    assert rule(min_valid=0.79).decide([good], mask)[0].entry['keep']


def test_soft_weights_are_one_up_to_the_margin_and_fall_smoothly_beyond() -> None:
    ratios = np.linspace(0, 6, 601)
    weights = soft_weight(ratios * 2.5, np.full_like(ratios, 2.5))
    assert (weights[ratios <= 1] == 1).all() and (np.diff(weights) <= 1e-12).all() and weights[-1] < 1e-6
    assert np.abs(np.diff(weights)).max() < 0.01  # no jump
    assert weights[[101, 200, 300]] == pytest.approx(np.exp([-0.0001, -1, -4]), abs=1e-6)


def test_a_soft_rule_writes_weights_in_the_place_of_255() -> None:
    found = rule(mode='soft').decide([LOSS], MASK)[0]
    expected = [1, np.exp(-(1.3 / 1.25 - 1)**2), 1, np.exp(-1), 0]
    assert found.weight.dtype == np.uint8 and found.weight[0] / 255 == pytest.approx(expected, abs=1 / 500)
    assert np.array_equal(found.label, MASK)
    assert found.entry['valid'] == pytest.approx(2 / 5)  # as of a hard rule, so that `min_valid` means the same
    assert found.entry['removed']['road'] == pytest.approx(2 - found.weight[0, 2:4].sum() / 255)
    lost = rule(mode='soft').decide([np.full_like(LOSS, 100)], MASK)[0]
    assert (lost.label == 255).all() and not lost.weight.any()


losses_of_siblings = st.integers(2, 5).flatmap(
    lambda count: arrays(np.float32, (count, 3, 4), elements=st.floats(0, 10, width=32)))


@settings(max_examples=100, deadline=None)
@given(losses=losses_of_siblings, mask=arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 255])))
def test_the_vote_leaves_each_place_to_half_of_the_siblings(losses: np.ndarray, mask: np.ndarray) -> None:
    alone = [found.label for found in rule().decide(list(losses), mask)]
    voted = [found.label for found in rule(sibling_vote='median').decide(list(losses), mask)]
    left = np.stack([label != 255 for label in voted])
    assert (left.mean(0)[mask != 255] >= 0.5).all()
    for own, vote, loss in zip(alone, voted, losses):
        assert (vote[own != 255] == mask[own != 255]).all()  # a vote takes nothing that the margin leaves
        assert (loss[(vote == 255) & (mask != 255)] > np.median(losses, 0)[(vote == 255) & (mask != 255)]).all()


def test_a_sample_without_siblings_is_judged_by_the_margin() -> None:
    one, other = (rule(sibling_vote=vote).decide([LOSS], MASK)[0] for vote in (None, 'median'))
    assert np.array_equal(one.label, other.label) and one.entry == other.entry


@settings(max_examples=50, deadline=None)
@given(loss=arrays(np.float32, (3, 4), elements=st.floats(0, 10, width=32)))
def test_a_larger_margin_trusts_no_less(loss: np.ndarray) -> None:
    mask = np.zeros((3, 4), np.uint8)
    shares = [rule(margin=margin).decide([loss], mask)[0].entry['valid'] for margin in (0.5, 1.25, 3)]
    assert shares == sorted(shares)


def test_a_class_that_the_real_data_lacks() -> None:
    mask, loss = np.array([[0, 2, 2]], np.uint8), np.array([[0.1, 0.1, 9.0]], np.float32)
    with pytest.raises(ValueError, match='shows water.*`unseen_classes`'):
        rule().decide([loss], mask)
    for unseen, label in (('drop', [[0, 255, 255]]), ('keep', [[0, 2, 2]])):
        for mode in ('hard', 'soft'):
            found = rule(unseen_classes=unseen, mode=mode).decide([loss], mask)[0]
            assert found.label.tolist() == label
            assert found.entry['hardness'] == pytest.approx(0.1)  # of the classes with a mean


def test_a_mask_without_labels_is_dropped() -> None:
    entry = rule().decide([np.zeros((2, 2), np.float32)], np.full((2, 2), 255, np.uint8))[0].entry
    assert (entry['keep'], entry['valid'], entry['pixels'], entry['hardness']) == (False, 0, {}, 0)


@pytest.mark.parametrize('options, message', [
    (dict(margin=0), '`margin` must be a number above 0, got 0'),
    (dict(margin=float('nan')), '`margin` must be a number above 0, got nan'),
    (dict(min_valid=80), r'`min_valid` must be in \[0, 1\], got 80'),
    (dict(mode='softly'), "`mode` must be one of 'hard', 'soft', got 'softly'"),
    (dict(sibling_vote=True), "`sibling_vote` must be one of None, 'median', got True"),
    (dict(unseen_classes=None), "`unseen_classes` must be one of 'error'"),
    (dict(weak_classes=['raod']), "`weak_classes` must be a list of names among field, road, water, got 'raod'"),
    (dict(weak_classes='road'), "`weak_classes` must be a list"),
    (dict(margin=-1, mode='x'), '`margin`.*`mode`'),
])
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(**options)
