"""The drawn land-cover set: seeded, consistent, with every class worth learning."""
import numpy as np
import pytest

from projects.demo.landcover import CLASSES, PALETTE, SOURCE, TARGET, draw_mask, draw_scene
from projects.demo.landcover_layout import _area, _cut, noise


@pytest.fixture(scope='module')
def scenes():
    drawn = [draw_scene(seed, 96) for seed in range(24)]
    return np.stack([image for image, _ in drawn]), np.stack([mask for _, mask in drawn])


def test_cutting_a_polygon_keeps_its_area():
    square = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 2.0]])
    first, second, line = _cut(square, np.array([1.0, 1.0]), np.array([1.0, 0.0]))
    assert sorted([_area(first), _area(second)]) == [2.0, 6.0]
    np.testing.assert_array_equal(np.sort(line, axis=0), [[1.0, 0.0], [1.0, 2.0]])


@pytest.mark.parametrize('cell', [1.6, 8])
def test_noise_is_about_standard(cell):
    field = noise(np.random.default_rng(0), 192, cell)
    assert field.shape == (192, 192)
    assert abs(field.mean()) < 0.15
    assert 0.8 < field.std() < 1.2


def test_a_seed_gives_the_same_bytes_and_another_seed_another_scene():
    image, mask = draw_scene(3, 64)
    again, mask_again = draw_scene(3, 64)
    other, mask_other = draw_scene(4, 64)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert (image != other).any() and (mask != mask_other).any()


@pytest.mark.parametrize('size', [16, 48, 97])
def test_the_mask_alone_is_the_mask_of_the_scene(size):
    for seed in (0, 11, 2**62):
        image, mask = draw_scene(seed, size)
        np.testing.assert_array_equal(draw_mask(seed, size), mask)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert mask.shape == (size, size) and mask.dtype == np.uint8


def test_every_class_has_its_share(scenes):
    _, masks = scenes
    shares = np.bincount(masks.ravel(), minlength=len(CLASSES)) / masks.size
    assert len(shares) == len(CLASSES) == len(PALETTE)
    assert (shares > 0.04).all(), dict(zip(CLASSES, shares.round(3)))
    assert shares.max() < 0.5


def test_even_a_small_crop_shows_several_classes(scenes):
    _, masks = scenes
    assert np.mean([len(np.unique(mask[:48, :48])) for mask in masks]) > 3


def test_colour_helps_and_does_not_solve_the_set(scenes):
    """A class has its colours, which a short training can learn; where they meet, it takes texture and context."""
    images, masks = scenes
    pixels, labels = images[:, ::4, ::4].reshape(-1, 3).astype(np.float32), masks[:, ::4, ::4].ravel()
    means = np.stack([pixels[labels == index].mean(axis=0) for index in range(len(CLASSES))])
    nearest = ((pixels[:, None] - means)**2).sum(axis=2).argmin(axis=1)
    recall = [(nearest[labels == index] == index).mean() for index in range(len(CLASSES))]
    assert 0.65 < np.mean(recall) < 0.85


def test_light_differs_between_scenes_and_little_is_clipped(scenes):
    images, _ = scenes
    assert images.mean(axis=(1, 2, 3)).std() > 5
    assert ((images == 0) | (images == 255)).mean() < 0.03


@pytest.mark.parametrize(('seed', 'size', 'message'), [
    (-1, 48, '`seed` must be >= 0, got -1'),
    (0, 8, '`size` must be at least 16 pixels, got 8'),
])
def test_mistakes_are_named(seed, size, message):
    for draw in (draw_scene, draw_mask):
        with pytest.raises(ValueError, match=message):
            draw(seed, size)


def test_another_look_is_the_same_land_in_other_colours():
    image, mask = draw_scene(5, 96)
    dry, mask_dry = draw_scene(5, 96, TARGET)
    np.testing.assert_array_equal(mask, mask_dry)
    np.testing.assert_array_equal(image, draw_scene(5, 96, SOURCE)[0])
    plants = mask == CLASSES.index('field')
    fresh, straw = (pixels[plants].mean(0) for pixels in (image, dry))
    assert fresh[1] > fresh[0] and straw[0] > straw[1], 'green, and then more red than green'
    assert straw[0] / straw[2] > 1.2 * fresh[0] / fresh[2]
    lightness = [pixels.mean(2).ravel() for pixels in (image, dry)]
    assert np.corrcoef(*lightness)[0, 1] > 0.8, 'what lies where stays visible'
