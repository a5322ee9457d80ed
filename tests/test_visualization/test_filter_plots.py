"""Plots of a filter: bars as long as the rates, kept and dropped samples apart, and the message of each mistake."""
import io

import numpy as np
import pytest
from PIL import Image

from mmsynth.visualization.plots import plot_filter_rates, plot_valid_shares, shorten

PALETTE = ((255, 0, 0), (0, 0, 255), (0, 200, 0))
KEPT, DROPPED = (0x1b, 0x6e, 0x3c), (0xd0, 0x69, 0x4f)


def count(png, color):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)
    return int((np.abs(pixels - color).max(-1) == 0).sum())


def test_bars_are_as_long_as_the_rates():
    png = plot_filter_rates([0.6, 0.2, None], 0.5, ['house', 'a $x_', 'never'], PALETTE)
    # The line at 50 % hides a little of the longer bar, the edges a little of both.
    assert count(png, PALETTE[0]) / count(png, PALETTE[1]) == pytest.approx(3, rel=0.06)
    assert count(png, PALETTE[2]) == 0


def test_kept_and_dropped_samples_are_stacked():
    png = plot_valid_shares([0.91, 0.92, 0.93], [0.31])
    assert count(png, KEPT) > 2 * count(png, DROPPED) > 0
    assert count(plot_valid_shares([0.9], []), DROPPED) == 0
    assert count(plot_valid_shares([], [0., 1.]), KEPT) == 0


@pytest.mark.filterwarnings('error')
def test_long_names_and_many_classes_leave_room_for_the_bars():
    names = [f'class {number} of public management and administrative services' for number in range(40)]
    png = plot_filter_rates([0.5] * 40, 0.5, names, [(255, 0, 0)] * 40)
    width, height = Image.open(io.BytesIO(png)).size
    assert count(png, (255, 0, 0)) > 0.15 * width * height
    assert shorten('short') == 'short' and len(shorten(names[0])) <= 26 and shorten(names[0]).endswith('…')


@pytest.mark.parametrize('call, message', [
    (lambda: plot_filter_rates([0.5], 0.5, ['a', 'b'], PALETTE[:2]), 'must have one length, got 1, 2 and 2'),
    (lambda: plot_filter_rates([1.5], 0.5, ['a'], PALETTE[:1]), r'must be in \[0, 1\], got 1.5'),
    (lambda: plot_filter_rates([0.5], float('nan'), ['a'], PALETTE[:1]), r'must be in \[0, 1\], got nan'),
    (lambda: plot_valid_shares([], []), 'at least one'),
    (lambda: plot_valid_shares([0.5], [-0.1]), r'shares in \[0, 1\]'),
])
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
