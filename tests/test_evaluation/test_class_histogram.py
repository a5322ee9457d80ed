"""Class shares: closed forms, before and after a filter, and a pool that was filtered in part."""
import numpy as np
import pytest
import torch
from colour_judges import IGNORED, coloured, generated, halves, measure

from mmsynth.evaluation import ClassHistogram, pool_sample


def filtered(mask: np.ndarray, trusted: np.ndarray) -> dict:
    return pool_sample('s', coloured(mask), mask, trusted)


def test_shares_of_the_labelled_pixels() -> None:
    masks = halves(0, 1), halves(0, IGNORED)
    result = measure(ClassHistogram(), generated(*((coloured(mask), mask) for mask in masks)), batch_size=1)
    assert result == pytest.approx({'classes/before.field': 200 / 3, 'classes/before.road': 100 / 3,
                                    'classes/before.water': 0, 'classes/before.unlabelled': 25})


def test_what_a_filter_left() -> None:
    """Half of the field goes from the first sample; the second was not kept."""
    left = halves(0, 1)
    left[:4, :4] = IGNORED
    samples = [filtered(halves(0, 1), left), filtered(halves(2, 2), np.full((8, 8), IGNORED, np.uint8))]
    result = measure(ClassHistogram(), samples)
    assert result['classes/before.water'] == 50 and result['classes/after.water'] == 0
    assert result['classes/after.field'] == pytest.approx(100 / 3)
    assert result['classes/after.road'] == pytest.approx(200 / 3)
    assert result['classes/after.unlabelled'] == pytest.approx(100 * (16 + 64) / 128)


def test_nothing_labelled_has_no_shares() -> None:
    mask = halves(IGNORED, IGNORED)
    assert measure(ClassHistogram(), generated((coloured(mask), mask))) == {'classes/before.unlabelled': 100}


def test_counts_beyond_float32_are_exact() -> None:
    own = ClassHistogram()
    own.dataset_meta = dict(classes=('field', 'road'))
    shares = own.compute_metrics([(torch.tensor([2**24 + 1, 2**24, 0]), None)])
    assert shares['before.field'] > 50 > shares['before.road']


def test_a_pool_filtered_in_part() -> None:
    samples = [filtered(halves(0, 1), halves(0, 1)), *generated((coloured(halves(0, 1)), halves(0, 1)))]
    with pytest.raises(ValueError, match='1 of 2 samples .*filter'):
        measure(ClassHistogram(), samples)


def test_no_class_names() -> None:
    with pytest.raises(ValueError, match='ClassHistogram needs the class names'):
        measure(ClassHistogram(), generated((coloured(halves(0, 1)), halves(0, 1))), classes=())
