"""Plots: their numbers, that they are pictures, and the message of each mistake."""
import io
import sys

import numpy as np
import pytest
from PIL import Image

from mmsynth.visualization import plot_class_balance, plot_guidance, plot_results
from mmsynth.visualization.plots import class_shares, guidance_series, percent

PALETTE = ((255, 0, 0), (0, 0, 255))
TRACE = [{'step': 0, 'loss_before': 2., 'loss_after': 1.}, {'step': 1, 'loss_before': None, 'loss_after': 0.5}]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


def count(png, color):
    return int((np.abs(pixels(png) - color).max(-1) == 0).sum())


def test_shares_and_series():
    assert class_shares([1, 3]) == [0.25, 0.75]
    assert guidance_series([TRACE, TRACE[:1]], 'loss_before') == {0: [2., 2.]}
    assert guidance_series([[{'step': 0, 'x': float('nan')}, {'x': 1.}]], 'x') == {}
    assert [percent(share) for share in (0, 0.00031, 0.012, 0.453, 1)] == ['0.0%', '0.031%', '1.2%', '45.3%', '100.0%']


def test_bars_are_as_long_as_the_shares():
    png = plot_class_balance(None, [300, 100], ['house', 'water'], PALETTE)
    assert count(png, PALETTE[0]) / count(png, PALETTE[1]) == pytest.approx(3, rel=0.05)  # edges take a little
    taller = plot_class_balance([100, 100], [300, 100], ['house', 'water'], PALETTE)
    assert pixels(taller).shape[0] > pixels(png).shape[0]


def test_plots_are_repeatable_and_leave_pyplot_alone():
    loaded = 'matplotlib.pyplot' in sys.modules
    assert plot_results({'a': [1., 2.], 'b $x_': [1.5]}, label='mIoU') == plot_results(
        {'a': [1., 2.], 'b $x_': [1.5]}, label='mIoU')
    assert ('matplotlib.pyplot' in sys.modules) == loaded
    if loaded:
        assert not sys.modules['matplotlib.pyplot'].get_fignums()


def test_guidance_shows_a_panel_per_quantity():
    one = pixels(plot_guidance([TRACE, TRACE]))
    more = pixels(plot_guidance([[{**TRACE[0], 'wrong_before': 0.5, 'wrong_after': 0.4, 'relative_change': 0.1}]]))
    assert more.shape[0] > 2 * one.shape[0] and more.shape[1] == one.shape[1]


@pytest.mark.parametrize('make, message', [
    (lambda: plot_class_balance([1], [1, 2], 'ab', PALETTE), 'one length, got .1, 2.'),
    (lambda: plot_class_balance([0, 0], [1, 2], 'ab', PALETTE), '`before` must hold counts'),
    (lambda: plot_class_balance(None, [-1, 2], 'ab', PALETTE), '`after` must hold counts'),
    (lambda: plot_guidance([]), 'at least one step .* got none in 0 traces'),
    (lambda: plot_guidance([[{'step': 0, 'loss_before': None}]]), 'got none in 1 traces'),
    (lambda: plot_results({}), 'at least one row'),
    (lambda: plot_results({'a': []}), "finite values, at least one per row, got .. in 'a'"),
    (lambda: plot_results({'a': [float('nan')]}), 'finite')])
def test_plot_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
