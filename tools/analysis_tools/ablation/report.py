"""What a guidance ablation says: results.jsonl, table.md, ablation.png and samples.png, and tables on the terminal."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from ablation.plan import RULE_TITLES, RULES, WITHOUT_STEPS, Variant
from ablation.plots import AblationPanel, plot_ablation
from ablation.store import MASKS, AblationStore, Measurement
from rich.console import Console
from rich.table import Table

from mmsynth.evaluation.segmentor_features import MIN_CLASS_SAMPLES
from mmsynth.utils.files import atomic_write
from mmsynth.visualization import draw_grid, save_png

RESULTS_FILE, TABLE_FILE, PLOT_FILE, SAMPLES_FILE = 'results.jsonl', 'table.md', 'ablation.png', 'samples.png'
_MISSING = '–'
_TILE = 112

BySeed = Mapping[int, Measurement]
ByVariant = dict[Variant, dict[int, Measurement]]


@dataclass(frozen=True)
class Metric:
    """A column of the table, and a panel of the plot.

    Attributes:
        title: Of the column.
        value: The figure of a measurement, given 'none' of the same seed; None where there is none.
        form: How it is written.
    """

    title: str
    value: Callable[[Measurement, Measurement], float | None]
    form: str = '{:.2f}'

    def values(self, measurements: BySeed, none: BySeed) -> list[float]:
        """The figures of all seeds that have one."""
        values = (self.value(measurement, none[seed]) for seed, measurement in measurements.items())
        return [value for value in values if value is not None]


METRICS = (
    Metric('judge mIoU (%)', lambda measurement, none: measurement.judge_miou),
    Metric('judge mIoU - none', lambda measurement, none: measurement.judge_miou - none.judge_miou, '{:+.2f}'),
    Metric('critic mIoU (%)', lambda measurement, none: measurement.critic_miou),
    Metric('Fréchet', lambda measurement, none: measurement.frechet, '{:.4g}'),
    Metric('‖dv‖ / ‖v‖', lambda measurement, none: measurement.relative_change, '{:.2g}'),
    Metric('s / image', lambda measurement, none: measurement.seconds_per_image, '{:.3f}'),
)


def report_ablation(measurements: Sequence[Measurement], out_dir: str | Path) -> None:
    """Write results.jsonl, table.md, ablation.png and samples.png to the ablation's folder, and print the tables.

    Args:
        measurements: Of all variants, 'none' among them, the same for every seed.
        out_dir: The folder.
    """
    out_dir = Path(out_dir)
    grouped = group(measurements)
    lines = [measurement.to_json() for measurement in measurements]
    atomic_write(out_dir / RESULTS_FILE, ('\n'.join(lines) + '\n').encode())
    tables = [('Rules', *main_table(grouped)), ('Fréchet distance per class', *class_table(grouped))]
    notes = describe(measurements)
    atomic_write(out_dir / TABLE_FILE, to_markdown(tables, notes).encode())
    atomic_write(out_dir / PLOT_FILE, draw_plot(grouped))
    save_png(draw_samples(AblationStore(out_dir), measurements), out_dir / SAMPLES_FILE)
    _print(tables, notes)


def group(measurements: Iterable[Measurement]) -> ByVariant:
    """Variant → seed → measurement."""
    grouped: ByVariant = {}
    for measurement in measurements:
        grouped.setdefault(measurement.variant, {})[measurement.seed] = measurement
    return grouped


def main_table(grouped: ByVariant) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: per variant mean ± standard deviation over the seeds of every metric."""
    none = grouped[Variant('none')]
    rows = [[*_label(variant), *(_mean_std(metric.values(by_seed, none), metric.form) for metric in METRICS)]
            for variant, by_seed in grouped.items()]
    return ['rule', 'steps', *(metric.title for metric in METRICS)], rows


def class_table(grouped: ByVariant) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: per variant the Fréchet distance of every class."""
    classes = list(next(iter(grouped[Variant('none')].values())).class_frechet)
    rows = []
    for variant, by_seed in grouped.items():
        values = [[measurement.class_frechet[name] for measurement in by_seed.values()] for name in classes]
        rows.append([*_label(variant), *(_mean_std([v for v in of_class if v is not None], '{:.4g}')
                                         for of_class in values)])
    return ['rule', 'steps', *classes], rows


def describe(measurements: Sequence[Measurement]) -> list[str]:
    """What the rules and the figures are, and which figures are missing."""
    seeds = list(dict.fromkeys(measurement.seed for measurement in measurements))
    one = measurements[0]
    notes = ['released: the raw gradient times 0.1, decreasing over the run, and v clamped to [-1, 1]; clamp only and '
             'gradient only are its halves. relative: 0.1 of ‖v‖ along the gradient. best of 4: of four images '
             'generated without guidance the one that the critic reads best.',
             f'{one.images} synthetic and {one.real_images} real images per seed; seeds {", ".join(map(str, seeds))}; '
             'mean ± standard deviation over the seeds; differences are taken within a seed.',
             'The Fréchet distance is between synthetic images and training images, in the features that the judge\'s '
             'last layer classifies. It is biased by the counts: compare within a column.',
             'The critic guided, so its own reading is no evidence.']
    for measurement in measurements:
        few = [f'{name} ({measurement.class_images[name]} synthetic, {measurement.class_real_images[name]} real)'
               for name, value in measurement.class_frechet.items() if value is None]
        if few and measurement.rule == 'none':
            notes.append(f'Seed {measurement.seed}: no Fréchet distance for classes in fewer than {MIN_CLASS_SAMPLES} '
                         f'images: {", ".join(few)}.')
    return notes


def to_markdown(tables: Sequence[tuple[str, list[str], list[list[str]]]], notes: Sequence[str]) -> str:
    """The tables as Markdown, each under its title, and the notes below."""
    parts = []
    for title, columns, rows in tables:
        lines = [f'## {title}', '', *('| ' + ' | '.join(cells) + ' |' for cells in (columns, ['---'] * len(columns)))]
        parts.append('\n'.join([*lines, *('| ' + ' | '.join(cells) + ' |' for cells in rows)]))
    return '\n\n'.join([*parts, '\n'.join(f'- {note}' for note in notes)]) + '\n'


def draw_plot(grouped: ByVariant) -> bytes:
    """Every metric over the steps; at 0 steps each rule is 'none'."""
    none = grouped[Variant('none')]
    numbers = sorted({variant.steps for variant in grouped if isinstance(variant.steps, int)})
    axis = ['0', *map(str, numbers), *(['all'] if any(variant.steps == 'all' for variant in grouped) else [])]
    panels = []
    for metric in METRICS:
        start = metric.values(none, none)
        curves: dict[str, dict[str, list[float]]] = {}
        levels: dict[str, list[float]] = {}
        for variant, by_seed in grouped.items():
            values = metric.values(by_seed, none)
            title = RULE_TITLES[variant.rule]
            if values and variant.steps is None:
                levels[title] = values
            elif values:
                curves.setdefault(title, {'0': start} if start else {})[str(variant.steps)] = values
        if curves or levels:
            panels.append(AblationPanel(metric.title, curves, levels))
    return plot_ablation(panels, axis)


def draw_samples(store: AblationStore, measurements: Sequence[Measurement]) -> np.ndarray:
    """Masks of the first seed, and what each rule generated for them: guided over the fewest and the most steps."""
    seed = measurements[0].seed
    variants = [measurement.variant for measurement in measurements if measurement.seed == seed]
    chosen = [variant for rule in RULES for variant in _ends([variant for variant in variants if variant.rule == rule])]
    columns = {'mask': store.read_pictures(MASKS, seed)}
    columns |= {' '.join(_label(variant, short=True)): store.read_pictures(variant.name, seed) for variant in chosen}
    return draw_grid(columns, tile_size=_TILE)


def _ends(variants: Sequence[Variant]) -> list[Variant]:
    """Of the variants of a rule the one of the fewest and the one of the most steps."""
    ordered = sorted(variants, key=lambda variant: float('inf') if variant.steps == 'all' else variant.steps or 0)
    return ordered[:1] + ordered[1:][-1:]


def _label(variant: Variant, short: bool = False) -> list[str]:
    name = variant.rule if short else RULE_TITLES[variant.rule]
    steps = '' if variant.rule in WITHOUT_STEPS else str(variant.steps)
    return [name, steps] if steps or not short else [name]


def _mean_std(values: Sequence[float], form: str) -> str:
    if not values:
        return _MISSING
    spread = f' ± {form.replace("+", "").format(stdev(values))}' if len(values) > 1 else ''
    return form.format(fmean(values)) + spread


def _print(tables: Sequence[tuple[str, list[str], list[list[str]]]], notes: Sequence[str]) -> None:
    console = Console()
    for title, columns, rows in tables:
        table = Table(title=title)
        for column in columns:
            table.add_column(column, no_wrap=column == 'rule')
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(note, highlight=False)
