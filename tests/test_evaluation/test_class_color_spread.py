"""Spread of class colours: closed forms, and what does not count."""
import math

import numpy as np
import pytest
from colour_judges import IGNORED, generated, halves, measure

from mmsynth.evaluation import ClassColorSpread

MASK = halves(0, 1)


def image(left: int, right: int) -> np.ndarray:
    """Two halves of grey, as the mask's."""
    return np.where(MASK == 0, left, right).astype(np.uint8)[..., None].repeat(3, -1)


def test_it_is_the_standard_deviation_of_the_mean_colours() -> None:
    """The field is 10, 20, 30 in all channels, the road the same in each image."""
    result = measure(ClassColorSpread(min_pixels=1), generated(*((image(own, 200), MASK) for own in (10, 20, 30))))
    assert result == pytest.approx({'colors/class.field': 10, 'colors/class.road': 0, 'colors/spread': 5})


def test_texture_within_an_image_is_no_spread() -> None:
    board = 200 * (np.indices(MASK.shape).sum(0) % 2).astype(np.uint8)[..., None].repeat(3, -1)
    result = measure(ClassColorSpread(min_pixels=1), generated((board, MASK), (200 - board, MASK)))
    assert result['colors/spread'] == pytest.approx(0)


def test_channels_are_averaged() -> None:
    red = image(0, 0)
    red[MASK == 0, 0] = 30
    result = measure(ClassColorSpread(min_pixels=1), generated((image(0, 0), MASK), (red, MASK)))
    assert result['colors/class.field'] == pytest.approx(30 / math.sqrt(2) / 3)


def test_few_pixels_and_those_without_a_label_do_not_count() -> None:
    samples = generated((image(10, 90), MASK), (image(30, 10), halves(0, IGNORED)))
    result = measure(ClassColorSpread(min_pixels=1), samples, batch_size=1)
    assert result == pytest.approx({'colors/class.field': 20 / math.sqrt(2), 'colors/spread': 20 / math.sqrt(2)})
    assert measure(ClassColorSpread(min_pixels=33), samples) == {}


def test_no_pixels_at_all_are_no_rule() -> None:
    with pytest.raises(ValueError, match='`min_pixels` must be at least 1, got 0'):
        ClassColorSpread(min_pixels=0)
