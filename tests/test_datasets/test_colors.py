"""Colour transfer: mean and covariance arrive, and nothing else moves."""
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmsynth.datasets.transforms import ColorTransfer, transfer_colors

RNG = np.random.default_rng(0)


def picture(mean: tuple[int, ...], mixing: list[list[float]], size: int = 64) -> NDArray[np.uint8]:
    """Normal colours of a mean and of the covariance mixing @ mixing.T."""
    return np.rint(np.array(mean) + RNG.normal(size=(size, size, 3)) @ np.array(mixing).T).clip(0, 255).astype(np.uint8)


GREEN = picture((90, 130, 80), [[12, 0, 0], [8, 10, 0], [4, 6, 9]])
BROWN = picture((150, 120, 70), [[25, 0, 0], [20, 8, 0], [10, 4, 5]], size=48)


def moments(image: NDArray[np.uint8]) -> tuple[NDArray, NDArray]:
    pixels = image.reshape(-1, 3).astype(float)
    return pixels.mean(0), np.cov(pixels, rowvar=False)


def test_mean_and_covariance_are_the_other_images() -> None:
    mean, covariance = moments(transfer_colors(GREEN, BROWN))
    wanted_mean, wanted_covariance = moments(BROWN)
    np.testing.assert_allclose(mean, wanted_mean, atol=0.1)
    # rounding adds 1/12; the least variance that is added to the image's takes up to a tenth
    np.testing.assert_allclose(covariance, wanted_covariance, atol=0.1 * wanted_covariance.max())


def test_the_map_is_the_optimal_one_in_one_dimension() -> None:
    """On a grey ramp it stretches: x' = m_b + (x - m_a) s_b / s_a."""
    ramp = np.repeat(np.arange(100, 200, dtype=np.uint8)[:, None, None], 3, 2).reshape(10, 10, 3)
    wide = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[:, None, None], 3, 2).reshape(10, 10, 3)
    np.testing.assert_allclose(transfer_colors(ramp, wide).astype(int), wide.astype(int), atol=1)


def test_amount_is_the_share_of_the_way() -> None:
    np.testing.assert_array_equal(transfer_colors(GREEN, BROWN, 0.0), GREEN)
    half = (GREEN.astype(float) + transfer_colors(GREEN, BROWN)) / 2
    np.testing.assert_allclose(transfer_colors(GREEN, BROWN, 0.5), half, atol=1)


def test_the_images_own_colours_change_nothing() -> None:
    assert np.abs(transfer_colors(GREEN, GREEN).astype(int) - GREEN).max() <= 4  # by the least variance


def test_a_plain_image_takes_the_mean_and_stays_plain() -> None:
    plain = np.full((8, 8, 3), 77, np.uint8)
    moved = transfer_colors(plain, BROWN)
    assert (moved == moved[0, 0]).all()
    np.testing.assert_allclose(moved[0, 0], BROWN.reshape(-1, 3).mean(0), atol=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / 'below').mkdir()
    Image.fromarray(BROWN).save(tmp_path / 'below' / 'brown.png')
    return str(tmp_path)


def test_an_image_of_the_folder_gives_the_colours(folder: str) -> None:
    label = np.zeros(GREEN.shape[:2], np.uint8)
    results = ColorTransfer(folder, prob=1, amount=(1, 1)).transform(dict(img=GREEN, gt_seg_map=label))
    np.testing.assert_array_equal(results['img'], transfer_colors(GREEN, BROWN[..., ::-1]))  # the host's images are BGR
    assert results['gt_seg_map'] is label


def test_how_often_and_how_far_follow_from_the_seed(folder: str) -> None:
    transform = ColorTransfer(folder)
    np.random.seed(3)
    first = [transform.transform(dict(img=GREEN))['img'] for _ in range(12)]
    np.random.seed(3)
    for image in first:
        np.testing.assert_array_equal(transform.transform(dict(img=GREEN))['img'], image)
    assert 0 < sum(image is GREEN for image in first) < 12
    assert ColorTransfer(folder, prob=0).transform(dict(img=GREEN))['img'] is GREEN


def test_an_image_of_the_folder_is_read_once(folder: str) -> None:
    transform = ColorTransfer(folder, prob=1, amount=(1, 1))
    first = transform.transform(dict(img=GREEN))['img']
    (Path(folder) / 'below' / 'brown.png').unlink()
    np.testing.assert_array_equal(transform.transform(dict(img=GREEN))['img'], first)


@pytest.mark.parametrize('options, message', [
    (dict(prob=1.5), r'`prob` must be in \[0, 1\], got 1.5'),
    (dict(amount=(0.5, 0.2)), r'`amount` must be two shares in \[0, 1\], the smaller first, got \(0.5, 0.2\)'),
    (dict(amount=(0, 2)), '`amount`'),
])
def test_options_out_of_range(folder: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColorTransfer(folder, **options)


def test_a_folder_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='`folder` of ColorTransfer: there is no folder .*nowhere'):
        ColorTransfer(str(tmp_path / 'nowhere'))
    with pytest.raises(FileNotFoundError, match='`folder` of ColorTransfer: .* holds no image'):
        ColorTransfer(str(tmp_path))
