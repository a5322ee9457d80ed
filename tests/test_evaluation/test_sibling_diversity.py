"""Diversity among siblings: closed forms with a judge whose features are colours, and nothing to compare."""
import math

import numpy as np
import pytest
from colour_judges import IGNORED, Colours, generated, halves, measure

from mmsynth.evaluation import Judge, SiblingDiversity

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 255
MASK = halves(0, 1, side=4)


def image(left: np.ndarray, right: np.ndarray, side: int = 4) -> np.ndarray:
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:, :side // 2], pixels[:, side // 2:] = left, right
    return pixels


def diversity(**options) -> SiblingDiversity:
    return SiblingDiversity(Judge(Colours().judge()), guidance={}, **options)


def test_equal_images_have_none() -> None:
    """Black ones too, whose features have no direction."""
    for own in (image(RED, GREEN), image(0 * RED, 0 * RED)):
        result = measure(diversity(), generated((own, MASK), (own, MASK)))
        assert result == pytest.approx({'diversity/masks': 1, 'diversity/pixels': 0, 'diversity/features': 0,
                                        'diversity/class.field': 0, 'diversity/class.road': 0})


def test_orthogonal_features_are_at_one() -> None:
    """The field is red, then green; the road stays blue."""
    result = measure(diversity(), generated((image(RED, BLUE), MASK), (image(GREEN, BLUE), MASK)))
    assert result['diversity/class.field'] == pytest.approx(1) and result['diversity/class.road'] == pytest.approx(0)
    assert result['diversity/features'] == pytest.approx(0.5)
    assert result['diversity/pixels'] == pytest.approx(math.sqrt(2 / 3 / 2))  # two of three channels, half the pixels


def test_all_pairs_count_then_all_masks() -> None:
    """Three siblings, two of them equal: 2/3 of the distance; another mask, whose siblings are equal: half of that."""
    other = halves(2, 2, side=4)
    samples = generated((image(RED, RED), MASK), (image(GREEN, GREEN), other), (image(RED, RED), MASK),
                      (image(GREEN, GREEN), MASK), (image(GREEN, GREEN), other), (image(BLUE, BLUE), MASK[:, ::-1]))
    result = measure(diversity(), samples)
    assert result['diversity/masks'] == 2
    assert result['diversity/features'] == pytest.approx((2 / 3 + 0) / 2)
    assert result['diversity/class.field'] == pytest.approx(2 / 3) and result['diversity/class.water'] == 0
    assert measure(diversity(), samples[::-1], batch_size=5) == pytest.approx(result)


def test_unlabelled_pixels_do_not_count_for_features() -> None:
    mask = halves(IGNORED, 1, side=4)
    result = measure(diversity(), generated((image(RED, BLUE), mask), (image(GREEN, BLUE), mask)))
    assert result['diversity/features'] == pytest.approx(0) and result['diversity/pixels'] > 0
    bare = halves(IGNORED, IGNORED, side=4)
    samples = generated((image(RED, BLUE), bare), (image(RED, RED), bare))
    assert 'diversity/features' not in measure(diversity(), samples)


def test_without_a_judge_pixels_alone_and_large_images_as_thumbnails() -> None:
    """Stripes of one pixel are grey at 64 x 64 of 128 x 128."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 254
    mask = halves(0, 1, side=128)
    result = measure(SiblingDiversity(), generated((stripes, mask), (stripes[:, ::-1], mask)))
    assert result == {'diversity/masks': 1, 'diversity/pixels': 0}


def test_without_siblings_nothing_is_said() -> None:
    result = measure(diversity(), generated((image(RED, RED), MASK), (image(RED, RED), MASK.T)))
    assert result == {'diversity/masks': 0}
