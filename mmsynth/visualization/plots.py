"""Plots as PNG bytes. Figures are made without pyplot, so nothing is shared with the plots of others."""
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

# Narrow on purpose: at the width of a phone the text is still readable.
WIDTH = 5.0
DPI = 200
_BEFORE, _AFTER, _NEUTRAL, _KEPT, _DROPPED = '#9a6324', '#1f6fb2', '#555555', '#1b6e3c', '#d0694f'
_BINS = 20
_LONGEST_NAME = 26


def plot_class_balance(before: Sequence[int] | None, after: Sequence[int], classes: Sequence[str],
                       palette: Sequence[Sequence[int]]) -> bytes:
    """Share of each class among all labelled pixels, as bars in the class's colour.

    Args:
        before: Pixels per class (K,), or None to show ``after`` alone.
        after: Pixels per class (K,).
        classes: Names (K,).
        palette: RGB colours in [0, 255] (K).

    Returns:
        PNG.

    Raises:
        ValueError: If the lengths differ, a count is negative, or nothing was counted.
    """
    series = {name: class_shares(counts, name) for name, counts in (('before', before), ('after', after))
              if counts is not None}
    lengths = {len(shares) for shares in series.values()} | {len(classes), len(palette)}
    if len(lengths) != 1:
        raise ValueError(f'`before`, `after`, `classes` and `palette` must have one length, got {sorted(lengths)}')
    figure, (axes,) = _figure(0.9 + (0.06 + 0.19 * len(series)) * len(classes), 1)
    colors = np.asarray(palette) / 255
    height = 0.82 / len(series)
    for number, (name, shares) in enumerate(series.items()):
        y = np.arange(len(classes)) + (number - (len(series) - 1) / 2) * height
        pale = name == 'before'
        axes.barh(y, shares, height * 0.9, color=colors * 0.4 + 0.6 if pale else colors, edgecolor=_NEUTRAL,
                  linewidth=0.6, hatch='////' if pale else None)
        for position, share in zip(y, shares, strict=True):
            axes.annotate(percent(share), (share, position), (3, 0), textcoords='offset points', va='center',
                          fontsize=8)
    axes.set_yticks(range(len(classes)), [_literal(name) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, max(max(shares) for shares in series.values()) * 1.18)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value * 100:g}%')
    axes.set_xlabel('share of labelled pixels')
    if len(series) > 1:
        figure.legend(handles=[Patch(facecolor='#dddddd', edgecolor=_NEUTRAL, hatch='////', label='before'),
                               Patch(facecolor='#999999', edgecolor=_NEUTRAL, label='after')], fontsize=9, ncols=2,
                      loc='outside upper right', frameon=False)
    return _png(figure)


def plot_guidance(traces: Sequence[Sequence[Mapping[str, float | None]]]) -> bytes:
    """What guidance did at each step: mean over the samples, with a band of one standard deviation.

    Args:
        traces: Per sample one dict per guided step, with 'step' and any of 'loss_before', 'loss_after' (the critic's
            loss), 'wrong_before', 'wrong_after' (share of pixels the critic misreads) and 'relative_change'
            (how much the prediction was changed, as a fraction of its norm). None and non-finite values are left out.
            Of a choice among candidates, one dict: before is the first candidate, after the one kept.

    Returns:
        PNG, one panel per quantity that was recorded.

    Raises:
        ValueError: If no trace holds any of these.
    """
    panels = [("critic's loss", {'loss_before': ('before', _BEFORE), 'loss_after': ('after', _AFTER)}),
              ('pixels misread', {'wrong_before': ('before', _BEFORE), 'wrong_after': ('after', _AFTER)}),
              ('relative change', {'relative_change': ('change of the prediction', _NEUTRAL)})]
    series = {key: guidance_series(traces, key) for _, keys in panels for key in keys}
    shown = [(label, {key: look for key, look in keys.items() if series[key]}) for label, keys in panels
             if any(series[key] for key in keys)]
    if not shown:
        raise ValueError(f'`traces` must hold at least one step with {", ".join(series)}; got none in '
                         f'{len(traces)} traces')
    figure, all_axes = _figure(0.5 + 1.75 * len(shown), len(shown))
    for axes, (label, keys) in zip(all_axes, shown, strict=True):
        for key, (name, color) in keys.items():
            steps = sorted(series[key])
            mean = np.array([np.mean(series[key][step]) for step in steps])
            spread = np.array([np.std(series[key][step]) for step in steps])
            axes.fill_between(steps, np.maximum(mean - spread, 0), mean + spread, color=color, alpha=0.15, linewidth=0)
            axes.plot(steps, mean, color=color, marker='o', markersize=3, label=name)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator('auto', steps=[1, 2, 2.5, 5, 10], integer=True))
        if len(keys) > 1:
            axes.legend(fontsize=9)
    all_axes[-1].set_xlabel('step')
    return _png(figure)


def plot_results(rows: Mapping[str, Sequence[float]], *, label: str = '') -> bytes:
    """One row per variant: each run as a dot, their mean as a bar, their standard deviation as a line.

    Args:
        rows: Name to values, one per run (seed), top to bottom.
        label: What was measured.

    Returns:
        PNG.

    Raises:
        ValueError: If there is no row, or a row is empty or holds a non-finite value.
    """
    for name, values in rows.items():
        if not len(values) or not all(math.isfinite(value) for value in values):
            raise ValueError(f'`rows` must hold finite values, at least one per row, got {list(values)!r:.80} in '
                             f'{name!r}')
    if not rows:
        raise ValueError('`rows` must hold at least one row')
    figure, (axes,) = _figure(0.9 + 0.36 * len(rows), 1)
    for y, values in enumerate(rows.values()):
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.
        axes.hlines(y, mean - spread, mean + spread, color=_NEUTRAL, linewidth=1.2)
        axes.plot([mean], [y], marker='|', markersize=16, markeredgewidth=2.2, color=_BEFORE, linestyle='none')
        axes.plot(values, [y] * len(values), marker='o', markersize=5, color=_AFTER, alpha=0.7, linestyle='none')
        axes.annotate(f'{mean:.4g}', (1, y), (4, 0), xycoords=('axes fraction', 'data'), textcoords='offset points',
                      va='center', fontsize=9)
    axes.set_yticks(range(len(rows)), [_literal(name) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(_literal(label))
    return _png(figure)


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
    figure, (axes,) = _figure(1.0 + 0.26 * len(classes), 1, grid='both')
    y, shown = np.arange(len(classes)), [rate or 0 for rate in rates]
    axes.barh(y, shown, 0.74, color=np.asarray(palette) / 255, edgecolor=_NEUTRAL, linewidth=0.6)
    for position, rate in enumerate(rates):
        axes.annotate('no pixels' if rate is None else percent(rate), (rate or 0, position), (3, 0),
                      textcoords='offset points', va='center', fontsize=8,
                      bbox=dict(facecolor='white', edgecolor='none', pad=0.8))
    axes.axvline(overall, color=_NEUTRAL, linewidth=1, linestyle='--')
    axes.annotate(f'all: {percent(overall)}', (overall, 1), (0, 3), xycoords=('data', 'axes fraction'),
                  textcoords='offset points', ha='center', fontsize=8)
    axes.set_yticks(y, [_literal(shorten(name)) for name in classes])
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
    figure, (axes,) = _figure(2.6, 1, grid='both')
    series = [(values, color, label) for values, color, label in
              ((kept, _KEPT, 'kept'), (dropped, _DROPPED, 'dropped')) if len(values)]
    values, colors, labels = zip(*series, strict=True)
    axes.hist(list(values), bins=np.linspace(0, 1, _BINS + 1).tolist(), stacked=True, color=list(colors),
              label=list(labels), edgecolor='white', linewidth=0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value * 100:g}%')
    axes.yaxis.set_major_locator(MaxNLocator('auto', steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.set_xlabel("pixels within the filter's margin")
    axes.set_ylabel('samples')
    figure.legend(fontsize=9, ncols=2, loc='outside upper right', frameon=False)
    return _png(figure)


def shorten(name: str) -> str:
    """A class name, cut to what fits into a plot of this width."""
    return name if len(name) <= _LONGEST_NAME else f'{name[:_LONGEST_NAME - 1].rstrip()}…'


def class_shares(counts: Sequence[int], name: str = 'counts') -> list[float]:
    """Counts per class as shares that add up to one.

    Raises:
        ValueError: If one is negative, or all are zero.
    """
    total = sum(int(count) for count in counts)
    if total <= 0 or min(counts) < 0:
        raise ValueError(f'`{name}` must hold counts that are not negative and not all zero, got {list(counts)!r:.80}')
    return [int(count) / total for count in counts]


def guidance_series(traces: Sequence[Sequence[Mapping[str, float | None]]], key: str) -> dict[int, list[float]]:
    """All finite values of one key, by step."""
    series: dict[int, list[float]] = {}
    for entry in (entry for trace in traces for entry in trace):
        value, step = entry.get(key), entry.get('step')
        if value is not None and step is not None and math.isfinite(value):
            series.setdefault(int(step), []).append(float(value))
    return series


def count_uncorrected(traces: Iterable[Sequence[Mapping[str, float | None]]]) -> tuple[int, int]:
    """How many samples guidance left uncorrected at any step, and at how many steps in all (their 'skipped')."""
    skipped = [sum(bool(entry.get('skipped')) for entry in trace) for trace in traces]
    return sum(count > 0 for count in skipped), sum(skipped)


def percent(share: float) -> str:
    """A share in [0, 1] with two or three digits: 0.031%, 1.2%, 45.3%."""
    value = share * 100
    return f'{value:.1f}%' if value >= 1 or not value else f'{value:.2g}%'


def _figure(height: float, panels: int, grid: str = 'x') -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for axes in all_axes:
        axes.tick_params(labelsize=9)
        axes.grid(axis='both' if panels > 1 else grid, color='#e4e4e4', linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.xaxis.label.set_size(10)
        axes.yaxis.label.set_size(10)
    return figure, all_axes


def _literal(text: str) -> str:
    """Keep matplotlib from reading a name as a formula."""
    return text.replace('$', r'\$')


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
    return buffer.getvalue()
