import numpy as np
import pytest

from mmsynth.datasets.transforms import CropSegMap


def test_the_middle_is_cut_and_missing_pixels_are_ignored() -> None:
    mask = np.arange(6 * 3, dtype=np.uint8).reshape(6, 3)
    results = CropSegMap((2, 5)).transform(dict(gt_seg_map=mask))
    assert results['gt_seg_map'].tolist() == [[255, 6, 7, 8, 255], [255, 9, 10, 11, 255]]
    assert results['img_shape'] == (2, 5) and results['gt_seg_map'].dtype == np.uint8


def test_a_mask_of_the_size_stays_as_it_is() -> None:
    mask = np.eye(4, dtype=np.uint8)
    assert (CropSegMap((4, 4)).transform(dict(gt_seg_map=mask))['gt_seg_map'] == mask).all()


def test_an_image_beside_the_mask_is_refused() -> None:
    with pytest.raises(ValueError, match='use RandomCrop'):
        CropSegMap((2, 2)).transform(dict(gt_seg_map=np.zeros((4, 4), np.uint8), img=np.zeros((4, 4, 3), np.uint8)))


def test_a_size_below_one_is_named() -> None:
    with pytest.raises(ValueError, match=r'`crop_size`.* got \(0, 2\)'):
        CropSegMap((0, 2))
