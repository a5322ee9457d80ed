"""Plots of an ablation: one panel per quantity, one line per rule over the steps that it guides."""
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.0
DPI = 150
_COLUMNS = 2
# Okabe and Ito's: told apart by the colour-blind too. First those of lines, then those of levels.
_LINES = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_LEVELS = ('#555555', '#000000')
_LEVEL_STYLES = ('--', ':')
_DODGE = 0.06  # between the bars of neighbouring lines, in steps of the axis

Values = Sequence[float]


@dataclass(frozen=True)
class AblationPanel:
    """One quantity.

    Attributes:
        label: Its name, with the unit.
        curves: Rule → position on the axis → one value per seed. A rule without values has no line.
        levels: Rule without steps → one value per seed; a horizontal line.
    """

    label: str
    curves: Mapping[str, Mapping[str, Values]]
    levels: Mapping[str, Values] = field(default_factory=dict)


def plot_ablation(panels: Sequence[AblationPanel], steps: Sequence[str]) -> bytes:
    """Mean over the seeds, with a bar (for levels a band) of one standard deviation where there are several.

    Args:
        panels: What is shown, two side by side; a rule has the same colour in all.
        steps: The positions on the axis, left to right, evenly spaced.

    Returns:
        PNG.

    Raises:
        ValueError: If there is no panel, a position is not on the axis, or a value is not finite.
    """
    _check(panels, steps)
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure((PANEL_WIDTH * min(len(panels), _COLUMNS), PANEL_HEIGHT * rows + 0.5), dpi=DPI,
                    layout='constrained')
    FigureCanvasAgg(figure)
    lines = list(dict.fromkeys(rule for panel in panels for rule in panel.curves))
    levels = list(dict.fromkeys(rule for panel in panels for rule in panel.levels))
    all_axes = figure.subplots(rows, min(len(panels), _COLUMNS), squeeze=False).ravel()
    for axes, panel in zip(all_axes, panels):
        _draw_panel(axes, panel, steps, lines, levels)
    for axes in all_axes[len(panels):]:
        axes.set_visible(False)
    shown = {label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(shown.values(), shown.keys(), loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
    return buffer.getvalue()


def _draw_panel(axes: Axes, panel: AblationPanel, steps: Sequence[str], lines: Sequence[str],
                levels: Sequence[str]) -> None:
    for rule, values in panel.levels.items():
        mean, spread = _summary(values)
        color, style = (looks[levels.index(rule) % len(looks)] for looks in (_LEVELS, _LEVEL_STYLES))
        axes.axhline(mean, color=color, linestyle=style, linewidth=1.2, label=rule)
        if spread is not None:
            axes.axhspan(mean - spread, mean + spread, color=color, alpha=0.07, linewidth=0)
    for rule, points in panel.curves.items():
        number = lines.index(rule)
        places = sorted(steps.index(step) for step in points)
        summaries = [_summary(points[steps[place]]) for place in places]
        dodge = _DODGE * (number - (len(lines) - 1) / 2)
        axes.errorbar([place + dodge for place in places], [mean for mean, _ in summaries],
                      yerr=[spread or 0 for _, spread in summaries], color=_LINES[number % len(_LINES)], marker='o',
                      markersize=4, linewidth=1.4, elinewidth=0.9, capsize=2, label=rule)
    axes.set_xticks(range(len(steps)), steps)
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.set_xlabel('guided steps', fontsize=9)
    axes.set_ylabel(panel.label, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(axis='y', color='#e4e4e4', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def _summary(values: Values) -> tuple[float, float | None]:
    """Mean, and standard deviation where there are several."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def _check(panels: Sequence[AblationPanel], steps: Sequence[str]) -> None:
    if not panels:
        raise ValueError('`panels` must hold at least one panel.')
    for panel in panels:
        off_axis = {step for points in panel.curves.values() for step in points} - set(steps)
        if off_axis:
            raise ValueError(f'`panels` must lie on the axis `steps` {list(steps)}, got {sorted(off_axis)[0]!r} in '
                             f'{panel.label!r}.')
        series = [*panel.levels.values(), *(values for points in panel.curves.values() for values in points.values())]
        wrong = [values for values in series if not len(values) or not all(map(isfinite, values))]
        if wrong:
            raise ValueError(f'`panels` must hold finite values, at least one per point, got {list(wrong[0])!r:.80} in '
                             f'{panel.label!r}.')
