"""Plots of what a filter did, as PNG bytes: how much of each class it removed, and what the samples were left with."""
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmsynth.visualization.plots import DPI, WIDTH, percent

_NEUTRAL, _KEPT, _DROPPED = '#555555', '#1b6e3c', '#d0694f'
_BINS = 20
_LONGEST_NAME = 26


def plot_filter_rates(rates: Sequence[float | None], overall: float, classes: Sequence[str],
                      palette: Sequence[Sequence[int]]) -> bytes:
    """Share of each class's pixels that a filter removed, as bars in the class's colour.

    Args:
        rates: In [0, 1], one per class (K,); None for a class without pixels.
        overall: Over all classes, a line across.
        classes: Names (K,).
        palette: RGB colours in [0, 255] (K).

    Returns:
        PNG.

    Raises:
        ValueError: If the lengths differ, or a rate is not in [0, 1].
    """
    if len({len(rates), len(classes), len(palette)}) != 1:
        raise ValueError('`rates`, `classes` and `palette` must have one length, got '
                         f'{len(rates)}, {len(classes)} and {len(palette)}')
    wrong = [rate for rate in (*rates, overall) if rate is not None and not 0 <= rate <= 1]
    if wrong:
        raise ValueError(f'`rates` and `overall` must be in [0, 1], got {wrong[0]}')
    figure, axes = _figure(1.0 + 0.26 * len(classes))
    y, shown = np.arange(len(classes)), [rate or 0 for rate in rates]
    axes.barh(y, shown, 0.74, color=np.asarray(palette) / 255, edgecolor=_NEUTRAL, linewidth=0.6)
    for position, rate in enumerate(rates):
        axes.annotate('no pixels' if rate is None else percent(rate), (rate or 0, position), (3, 0),
                      textcoords='offset points', va='center', fontsize=8,
                      bbox=dict(facecolor='white', edgecolor='none', pad=0.8))
    axes.axvline(overall, color=_NEUTRAL, linewidth=1, linestyle='--')
    axes.annotate(f'all: {percent(overall)}', (overall, 1), (0, 3), xycoords=('data', 'axes fraction'),
                  textcoords='offset points', ha='center', fontsize=8)
    axes.set_yticks(y, [literal(shorten(name)) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, max(*shown, overall, 0.01) * 1.2)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value * 100:g}%')
    axes.set_xlabel('share of pixels removed')
    return _png(figure)


def plot_valid_shares(kept: Sequence[float], dropped: Sequence[float]) -> bytes:
    """How many samples were left with which share of valid pixels, kept and dropped ones stacked.

    Args:
        kept: Shares in [0, 1] of the samples that were kept.
        dropped: Of those that were not.

    Returns:
        PNG.

    Raises:
        ValueError: If there is no share at all, or one is not in [0, 1].
    """
    shares = [*kept, *dropped]
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f'`kept` and `dropped` must hold shares in [0, 1], at least one, got {shares!r:.80}')
    figure, axes = _figure(2.6)
    series = [(values, color, label) for values, color, label in
              ((kept, _KEPT, 'kept'), (dropped, _DROPPED, 'dropped')) if len(values)]
    values, colors, labels = zip(*series, strict=True)
    axes.hist(list(values), bins=np.linspace(0, 1, _BINS + 1), stacked=True, color=list(colors), label=list(labels),
              edgecolor='white', linewidth=0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value * 100:g}%')
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel('pixels that stay labelled')
    axes.set_ylabel('samples')
    figure.legend(fontsize=9, ncols=2, loc='outside upper right', frameon=False)
    return _png(figure)


def shorten(name: str) -> str:
    """A class name as a plot of this width has room for."""
    return name if len(name) <= _LONGEST_NAME else f'{name[:_LONGEST_NAME - 1].rstrip()}…'


def literal(text: str) -> str:
    """Keep matplotlib from reading a name as a formula."""
    return text.replace('$', r'\$')


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(labelsize=9)
    axes.grid(color='#e4e4e4', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.xaxis.label.set_size(10)
    axes.yaxis.label.set_size(10)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
    return buffer.getvalue()
