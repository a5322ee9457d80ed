"""The tables, plots and pictures of a study."""
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mmsynth.pool import Pool
from mmsynth.utils.files import atomic_write
from mmsynth.visualization import Report, colorize, draw_grid
from worth_study.folders import case_folder, row_counts
from worth_study.plan import Study
from worth_study.statistics import (
    Counts,
    Interval,
    best_row,
    class_iou,
    miou,
    paired_class_intervals,
    paired_interval,
)

_PICTURES = 8
_COLUMNS = 6  # of a grid of pictures, beside mask and real image


class Comparison(NamedTuple):
    """The rows of a segmentor and a share against each other, as texts.

    Attributes:
        baseline: The best row of real images only, on the inner validation part.
        chosen: The best row of all, on the inner validation part.
        columns: Heads of the table.
        lines: Per row: title, mIoU of each seed on the test part, mean and standard deviation over seeds, and the
            paired differences from the baseline and from the row of plain synthetic images, with 95 % intervals.
        classes: Per row: title, and per class the paired difference from the baseline; of the baseline itself the IoU.
    """

    baseline: str
    chosen: str
    columns: list[str]
    lines: dict[str, list[str]]
    classes: list[list[str]]


def compare(study: Study, seeds: Sequence[int], val: Mapping[str, list[Counts]],
            test: Mapping[str, list[Counts]]) -> Comparison:
    """Compare rows by their counts of each seed; what is chosen, is chosen by those of the inner validation part."""
    baseline = best_row({name: val[name] for name in study.baseline if name in val})
    others = [baseline, *([study.plain] if study.plain in test else [])]
    lines, classes = {}, []
    for name, per_seed in test.items():
        values = [miou(counts) for counts in per_seed]
        spread = f'{np.std(values, ddof=1):.2f}' if len(values) > 1 else '–'
        lines[name] = [title(study, name), *(f'{value:.2f}' for value in values), f'{np.mean(values):.2f}', spread,
                       *('–' if name == other else show(paired_interval(per_seed, test[other])) for other in others)]
        if name == baseline:
            per_class = [f'{np.mean(ious):.1f}' if len(ious := column[~np.isnan(column)]) else '–'
                         for column in np.stack([class_iou(counts) for counts in per_seed]).T]
        else:
            per_class = [show(interval, 1) for interval in paired_class_intervals(per_seed, test[baseline])]
        classes.append([title(study, name), *per_class])
    columns = ['trained on', *(f'seed {seed}' for seed in seeds), 'mean', 'std',
               *(f'minus {title(study, other)} [95 %]' for other in others)]
    return Comparison(baseline, best_row(val), columns, lines, classes)


def write_report(study: Study, out_dir: Path, seeds: Sequence[int]) -> str:
    """Write ``report.html`` and ``worth.md`` to the study's folder, with the rows that all seeds have finished.

    Returns:
        The tables as markdown.
    """
    report = Report('What synthetic images are worth', dict(
        seeds=', '.join(map(str, seeds)), shares=', '.join(f'{share:g}' for share in study.shares)))
    texts, curves = [], {}
    for segmentor in study.segmentors:
        for share in study.shares:
            val, test = (load_counts(study, out_dir, share, seeds, segmentor, part) for part in ('val', 'test'))
            if not any(name in val for name in study.baseline):
                continue
            found = compare(study, seeds, val, test)
            heading, choice = f'{segmentor}, {share:g} of the labels', _choice(study, found)
            texts.append(f'**{heading}** (mIoU on unseen places, %)\n\n'
                         f'{markdown(found.columns, list(found.lines.values()))}\n\n{choice}')
            report.add_table(heading, found.columns, list(found.lines.values()), 'mIoU on places that nothing was '
                             f'trained or chosen on, in percent; differences are paired by seed and image. {choice}')
            report.add_table(f'{heading}: classes', ['trained on', *_classes(out_dir, share, seeds[0])], found.classes,
                             f'IoU in percent: of {title(study, found.baseline)} the mean over the seeds, of all '
                             'others the paired difference from it with its 95 % interval.')
            for name, per_seed in test.items():
                curves.setdefault(segmentor, {}).setdefault(name, {})[share] = [miou(counts) for counts in per_seed]
    for share in study.shares:
        lines = _readings(study, out_dir, share, seeds)
        if lines:
            heading = f'What judges read, {share:g} of the labels'
            columns = ['images', *(f'{measure} by {judge}' for judge in study.judges
                                   for measure in ('mIoU', 'Fréchet')), 'colour spread']
            note = ('How well segmentors that guide none read the masks from the images (mIoU, %), and the Fréchet '
                    'distance to the labelled images in their features; how much the colour of a class differs from '
                    'image to image (levels of 0 to 255); mean ± standard deviation over the seeds, and each seed.')
            texts.append(f'**{heading}**\n\n{markdown(columns, lines)}\n\n{note}')
            report.add_table(heading, columns, lines, note)
    if len(study.shares) > 1:
        for segmentor, rows in curves.items():
            report.add_figure(f'{segmentor}: mIoU over the labelled share', _plot(study, rows),
                              'Mean over the seeds, with one standard deviation.')
    _add_pictures(report, study, out_dir, seeds[0])
    _add_times(report, study, out_dir, seeds)
    out_dir.mkdir(parents=True, exist_ok=True)
    report.write(out_dir / 'report.html')
    text = '\n\n'.join(texts) + '\n'
    atomic_write(out_dir / 'worth.md', text.encode())
    return text


def load_counts(study: Study, out_dir: Path, share: float, seeds: Sequence[int], segmentor: str,
                part: str) -> dict[str, list[Counts]]:
    """Counts of the rows that all seeds have finished, in the study's order."""
    found = {}
    for row in study.rows:
        counts = [row_counts(case_folder(out_dir, share, seed), segmentor, row, part, study.trainings)
                  for seed in seeds]
        if all(own is not None for own in counts):
            found[row] = counts
    return found


def title(study: Study, row: str) -> str:
    """What a row is called in tables."""
    return study.rows[row].title or row


def show(interval: Interval, digits: int = 2) -> str:
    """An interval as text: mean and, in brackets, both ends; a dash where there is none."""
    if np.isnan(interval.mean):
        return '–'
    mean, low, high = (f'{value:+.{digits}f}' for value in interval)
    return f'{mean} [{low}, {high}]'


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [columns, ['---'] * len(columns), *lines])


def _choice(study: Study, found: Comparison) -> str:
    """What the inner validation part chooses, and how that does on the test part."""
    number = found.columns.index('mean')
    line, real = found.lines[found.chosen], title(study, found.baseline)
    differences = ''.join(f'; {column}: {value}' for column, value in
                          zip(found.columns[number + 2:], line[number + 2:]) if value != '–')
    return (f'The inner validation part chooses, of real images only, "{real}", and of all rows "{line[0]}": '
            f'{line[number]} on the test part{differences}.')


def _readings(study: Study, out_dir: Path, share: float, seeds: Sequence[int]) -> list[list[str]]:
    """Per pool: its name, per judge mIoU and Fréchet distance over the seeds, and the spread of class colours; of pools
    that all have read.
    """
    lines = []
    for pool in study.pools:
        files = [[case_folder(out_dir, share, seed) / 'readings' / judge / pool / 'evaluation.json' for seed in seeds]
                 for judge in study.judges]
        if files and all(file.is_file() for per_seed in files for file in per_seed):
            found = [[json.loads(file.read_text())['metrics'] for file in per_seed] for per_seed in files]
            lines.append([pool, *(_over_seeds(per_seed, name) for per_seed in found
                                  for name in ('consistency/mIoU', 'frechet/distance')),
                          _over_seeds(found[0], 'colors/spread')])
    return lines


def _over_seeds(per_seed: Sequence[Mapping[str, float]], name: str) -> str:
    if any(name not in metrics for metrics in per_seed):
        return '–'
    values = [metrics[name] for metrics in per_seed]
    each = ', '.join(f'{value:.2f}' for value in values)
    return f'{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} ({each})' if len(values) > 1 else each


def _classes(out_dir: Path, share: float, seed: int) -> list[str]:
    return json.loads((case_folder(out_dir, share, seed) / 'data' / 'meta.json').read_text())['classes']


def _plot(study: Study, rows: dict[str, dict[float, list[float]]]) -> bytes:
    colors = matplotlib.colormaps['tab20'].colors
    with matplotlib.rc_context({'axes.spines.top': False, 'axes.spines.right': False}):
        figure = Figure(figsize=(9, 4.5), layout='constrained')
        axes = figure.subplots()
        for number, (name, values) in enumerate(rows.items()):
            shares, color = sorted(values), colors[number % len(colors)]
            mean = np.array([np.mean(values[share]) for share in shares])
            spread = np.array([np.std(values[share], ddof=1) if len(values[share]) > 1 else 0 for share in shares])
            axes.fill_between(shares, mean - spread, mean + spread, alpha=0.08, linewidth=0, color=color)
            axes.plot(shares, mean, marker='o', markersize=3, label=title(study, name), color=color,
                      linestyle='--' if study.rows[name].is_real else '-')
        axes.set(xscale='log', xlabel='labelled share of the training images', ylabel='mIoU on unseen places (%)')
        axes.set_xticks(sorted(study.shares), [f'{share:g}' for share in sorted(study.shares)])
        axes.minorticks_off()
        figure.legend(fontsize=7, frameon=False, loc='outside right upper')
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=128)
    return buffer.getvalue()


def _add_pictures(report: Report, study: Study, out_dir: Path, seed: int) -> None:
    """The images of all pools for some of the tiles; a pool with other masks shows a blank."""
    share = max(study.shares)
    folder = case_folder(out_dir, share, seed)
    pools = {name: Pool.open(folder / 'pools' / name) for name in study.pools
             if study.pools[name].filter is None and (folder / 'pools' / f'{name}.done').is_file()}
    if not pools:
        return
    first = next(iter(pools.values()))
    chosen = [first.records[index] for index in
              np.linspace(0, len(first.records) - 1, min(_PICTURES, len(first.records))).astype(int)]
    tiles = [folder / 'data' / 'img_dir' / 'synthesis' / Path(record.source_mask).name for record in chosen]
    shown = dict(mask=[colorize(first.load_mask(record), first.palette) for record in chosen],
                 real=[np.asarray(Image.open(tile)) if record.mask_origin is None and tile.is_file() else None
                       for record, tile in zip(chosen, tiles)])
    columns = {}
    for name, pool in pools.items():
        columns[name] = [pool.load_image(pool.get(record.id)) if pool.has(record.id) else None for record in chosen]
    names = [name for name, images in columns.items() if any(image is not None for image in images)]
    for start in range(0, len(names), _COLUMNS):
        report.add_figure('Images' if start == 0 else '', draw_grid(
            shown | {name: columns[name] for name in names[start:start + _COLUMNS]},
            legend=list(zip(first.classes, first.palette))),
            f'The same masks and noise in every pool; seed {seed}, {share:g} of the labels.')


def _add_times(report: Report, study: Study, out_dir: Path, seeds: Sequence[int]) -> None:
    """How long the stages took, which their files say."""
    seconds: dict[str, dict[float, list[float]]] = {}
    for share in study.shares:
        for seed in seeds:
            folder = case_folder(out_dir, share, seed)
            for file in sorted(folder.rglob('*.done')):
                stage = str(file.relative_to(folder).with_suffix(''))
                seconds.setdefault(stage, {}).setdefault(share, []).append(json.loads(file.read_text())['seconds'])
    lines = [[stage, *(f'{np.mean(own[share]):.0f}' if share in own else '–' for share in study.shares)]
             for stage, own in seconds.items()]
    if lines:
        report.add_table('Time', ['stage', *(f'{share:g} of the labels' for share in study.shares)], lines,
                         'Seconds in one thread, mean over the seeds; of a stage that was killed, its last run only.')
