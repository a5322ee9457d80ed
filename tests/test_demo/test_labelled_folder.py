"""Reading labelled images: the majority vote, and masks of every kind."""
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from projects.demo.labelled_folder import read_pair, refuse, shrink_mask


def test_majority_vote_in_closed_form():
    mask = np.array([[0, 1, 2, 2, 255, 255, 255, 255, 1],
                     [1, 1, 0, 0, 255, 2, 1, 0, 1],
                     [9, 9, 9, 9, 9, 9, 9, 9, 9]], np.uint8)
    # a clear majority; a tie, to the lowest; mostly ignored; half ignored, to the lowest of the labelled
    np.testing.assert_array_equal(shrink_mask(mask, 2, 3), [[1, 0, 255, 0]])


def test_majority_vote_agrees_with_counting_pixel_by_pixel():
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 2, 3, 255], (13, 17)).astype(np.uint16)
    small = shrink_mask(mask, 3, 4)
    assert small.shape == (4, 5) and small.dtype == np.uint8
    for row in range(4):
        for col in range(5):
            counts = Counter(mask[3 * row:3 * row + 3, 3 * col:3 * col + 3].ravel().tolist())
            best = min((index for index in range(4)), key=lambda index: (-counts[index], index))
            assert small[row, col] == (255 if counts[255] > 4 else best)


def test_shrinking_by_one_changes_nothing():
    mask = np.array([[0, 255], [2, 1]], np.uint8)
    np.testing.assert_array_equal(shrink_mask(mask, 1, 3), mask)


@pytest.mark.parametrize('kind', ['8 bit', '16 bit', 'palette'])
def test_masks_of_any_kind_are_read_as_indices(tmp_path, kind):
    mask = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    stored = Image.fromarray(mask.astype(np.uint16) if kind == '16 bit' else mask)
    if kind == 'palette':
        stored.putpalette(list(range(256)) * 3)
    stored.save(tmp_path / 'mask.png')
    assert Image.open(tmp_path / 'mask.png').mode == {'8 bit': 'L', '16 bit': 'I;16', 'palette': 'P'}[kind]
    Image.new('RGB', (3, 2), (10, 20, 30)).save(tmp_path / 'image.png')
    image, read = read_pair(tmp_path / 'image.png', tmp_path / 'mask.png', 3, 1)
    np.testing.assert_array_equal(read, mask)
    assert read.dtype == np.uint8
    assert (image == [10, 20, 30]).all(), 'RGB'


def test_many_problems_are_cut_short():
    refuse('nothing', [])
    with pytest.raises(ValueError, match='(?s)^bad:\n- 0\n- 1\n- ... and 3 more$'):
        refuse('bad', [str(index) for index in range(5)], shown=2)
