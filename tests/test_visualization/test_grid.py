"""Grids, pixel by pixel."""
import numpy as np
import pytest
from PIL import Image

from mmsynth.visualization import colorize, draw_grid, save_png
from mmsynth.visualization.grid import BACKGROUND, BLANK, GAP, LABEL_WIDTH, STRIP

PALETTE = ((10, 20, 30), (255, 0, 0))


def tile(grid, column, row, size, left=GAP):
    """The pixels of one tile."""
    y, x = STRIP + row * (size + GAP), left + column * (size + GAP)
    return grid[y:y + size, x:x + size]


def test_colorize_is_the_palette_and_black():
    coloured = colorize(np.array([[0, 1], [255, 0]], np.uint8), PALETTE)
    assert coloured.dtype == np.uint8
    assert coloured.tolist() == [[[10, 20, 30], [255, 0, 0]], [[0, 0, 0], [10, 20, 30]]]


@pytest.mark.parametrize('mask, message', [
    (np.array([[0, 2]]), '`mask`.* below 2, or 255.* got 2 '), (np.array([[-1, 0]]), '`mask`.* got -1 '),
    (np.zeros((2, 2)), 'integers'), (np.zeros((1, 2, 2), np.uint8), r'\(H, W\)')])
def test_colorize_mistakes(mask, message):
    with pytest.raises(ValueError, match=message):
        colorize(mask, PALETTE)


def test_tiles_of_their_own_size_are_untouched():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    grid = draw_grid({'a': pictures[:2], 'b': [pictures[2], None]}, tile_size=32)
    assert grid.dtype == np.uint8 and grid.shape == (STRIP + 2 * (32 + GAP), GAP + 2 * (32 + GAP), 3)
    for (column, row), picture in zip(((0, 0), (0, 1), (1, 0)), pictures[:3], strict=True):
        assert np.array_equal(tile(grid, column, row, 32), picture)
    assert (tile(grid, 1, 1, 32) == BLANK).all()
    assert (grid[STRIP:, :GAP] == BACKGROUND).all()
    assert (grid[:STRIP] != BACKGROUND).any()  # the titles


def test_nearest_keeps_colours_and_smooth_mixes_them():
    picture = np.array([[[0] * 3, [200] * 3], [[200] * 3, [0] * 3]], np.uint8)
    grid = draw_grid({'mask': [picture], 'photo': [picture]}, tile_size=8, scale={'photo': 'smooth'})
    assert np.array_equal(tile(grid, 0, 0, 8), picture.repeat(4, 0).repeat(4, 1))
    assert len(np.unique(tile(grid, 1, 0, 8))) > 2


def test_proportions_are_kept():
    grid = draw_grid({'wide': [np.zeros((4, 16), np.uint8)]}, tile_size=16)
    shown = (tile(grid, 0, 0, 16) == 0).all(-1)
    assert shown.sum() == 64 and shown[6:10].all()


def test_labels_and_legend_have_their_own_room():
    picture = np.zeros((16, 16, 3), np.uint8)
    plain = draw_grid({'a': [picture]}, tile_size=16)
    grid = draw_grid({'a': [picture]}, tile_size=16, row_labels=['x'], legend=[('house', (255, 0, 0))] * 3)
    assert grid.shape[1] == plain.shape[1] + LABEL_WIDTH and grid.shape[0] > plain.shape[0]
    assert np.array_equal(tile(grid, 0, 0, 16, GAP + LABEL_WIDTH), picture)
    assert (grid[plain.shape[0]:] == (255, 0, 0)).all(-1).sum() > 100
    assert not (plain == (255, 0, 0)).all(-1).any()


def test_long_titles_stay_in_their_column():
    pictures = [np.zeros((64, 64, 3), np.uint8)]
    short = draw_grid({'W' * 40: pictures, 'b': pictures}, tile_size=64)
    assert (short[:STRIP, GAP + 64:GAP + 64 + GAP] == BACKGROUND).all()


@pytest.mark.parametrize('changes, message', [
    ({'columns': {}}, 'at least one column'),
    ({'columns': {'a': [None], 'b': []}}, "one length.*'a': 1, 'b': 0"),
    ({'row_labels': ['x', 'y']}, "`row_labels`': 2"),
    ({'columns': {'a': [np.zeros((2, 2))]}}, "uint8, got .* float64 in 'a', row 0"),
    ({'columns': {'a': [np.zeros((2, 2, 4), np.uint8)]}}, r'got \(2, 2, 4\)'),
    ({'tile_size': 0}, '`tile_size` must be positive, got 0'),
    ({'scale': 'cubic'}, "one of nearest, smooth, got 'cubic'")])
def test_grid_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        draw_grid(**{**{'columns': {'a': [None]}}, **changes})


def test_save_png_leaves_one_file(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_png(picture, tmp_path / 'grid.png')
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'grid.png')), picture)
    assert [path.name for path in tmp_path.iterdir()] == ['grid.png']
