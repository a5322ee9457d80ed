"""The tables, plot and pictures of a study."""
import io
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mmsynth.visualization import Report, colorize, draw_grid
from worth_study.case import case_folder, counts_file, load_pool
from worth_study.plan import Study
from worth_study.statistics import Counts, Interval, best_row, class_iou, miou, paired_interval

_PICTURES = 8


def load_counts(study: Study, out_dir: Path, share: float, seeds: Sequence[int], segmentor: str,
                part: str) -> dict[str, list[Counts]]:
    """Counts of the rows that all seeds have finished, in the study's order."""
    found = {}
    for row in study.rows:
        files = [counts_file(out_dir, share, seed, segmentor, row, part) for seed in seeds]
        if all(file.is_file() for file in files):
            found[row] = [np.load(file, allow_pickle=False) for file in files]
    return found


def compare(study: Study, val: dict[str, list[Counts]], test: dict[str, list[Counts]]) -> tuple[str, list[list[str]]]:
    """The baseline that the inner validation part chooses, and a line of the table per row.

    A line holds title, mIoU of each seed on the test part, mean, standard deviation over seeds, and the paired
    difference from the baseline with its 95 % interval.
    """
    baseline = best_row({name: val[name] for name in study.baseline if name in val})
    lines = []
    for name, counts in test.items():
        values = [miou(own) for own in counts]
        spread = f'{np.std(values, ddof=1):.2f}' if len(values) > 1 else '–'
        difference = '–' if name == baseline else show(paired_interval(counts, test[baseline]))
        lines.append([study.rows[name].title or name, *(f'{value:.2f}' for value in values),
                      f'{np.mean(values):.2f}', spread, difference])
    return baseline, lines


def show(interval: Interval) -> str:
    """An interval as text: mean and, in brackets, both ends."""
    return f'{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]'


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [columns, ['---'] * len(columns), *lines])


def write_report(study: Study, out_dir: Path, seeds: Sequence[int]) -> str:
    """Write ``report.html`` and ``worth.md`` to the study's folder.

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
            baseline, lines = compare(study, val, test)
            heading = f'{segmentor}, {share:g} of the labels'
            columns = ['trained on', *(f'seed {seed}' for seed in seeds), 'mean', 'std',
                       f'minus {study.rows[baseline].title or baseline} [95 %]']
            texts.append(f'**{heading}** (mIoU on unseen places, %)\n\n{markdown(columns, lines)}')
            report.add_table(heading, columns, lines, 'mIoU on places that nothing was trained or chosen on, in '
                             'percent; the row that is subtracted was chosen on the inner validation part.')
            classes = _classes(out_dir, share, seeds[0])
            report.add_table(f'{heading}: classes', ['trained on', *classes], [
                [study.rows[name].title or name,
                 *(f'{value:.1f}' for value in np.nanmean([class_iou(own) for own in counts], 0))]
                for name, counts in test.items()], 'IoU per class in percent, mean over the seeds.')
            for name, counts in test.items():
                curves.setdefault(segmentor, {}).setdefault(name, {})[share] = [miou(own) for own in counts]
    if len(study.shares) > 1:
        for segmentor, rows in curves.items():
            report.add_figure(f'{segmentor}: mIoU over the labelled share', _plot(study, rows),
                              'Mean over the seeds, with one standard deviation.')
    _add_pictures(report, study, out_dir, seeds[0])
    report.write(out_dir / 'report.html')
    text = '\n\n'.join(texts) + '\n'
    (out_dir / 'worth.md').write_text(text, encoding='utf-8')
    return text


def _classes(out_dir: Path, share: float, seed: int) -> list[str]:
    return json.loads((case_folder(out_dir, share, seed) / 'data' / 'meta.json').read_text())['classes']


def _plot(study: Study, rows: dict[str, dict[float, list[float]]]) -> bytes:
    with matplotlib.rc_context({'axes.spines.top': False, 'axes.spines.right': False}):
        figure = Figure(figsize=(7, 4), layout='constrained')
        axes = figure.subplots()
        for name, values in rows.items():
            shares = sorted(values)
            mean = np.array([np.mean(values[share]) for share in shares])
            spread = np.array([np.std(values[share]) for share in shares])
            axes.fill_between(shares, mean - spread, mean + spread, alpha=0.12, linewidth=0)
            axes.plot(shares, mean, marker='o', markersize=3, label=study.rows[name].title or name)
        axes.set(xscale='log', xlabel='labelled share of the training images', ylabel='mIoU on unseen places (%)')
        axes.set_xticks(sorted(study.shares), [f'{share:g}' for share in sorted(study.shares)])
        axes.legend(fontsize=8, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=128)
    return buffer.getvalue()


def _add_pictures(report: Report, study: Study, out_dir: Path, seed: int) -> None:
    share = max(study.shares)
    names = [name for name in study.pools if (case_folder(out_dir, share, seed) / f'pool_{name}.done').is_file()]
    if not names:
        return
    pools = [load_pool(out_dir, share, seed, name) for name in names]
    first = pools[0].records
    chosen = [first[index] for index in np.linspace(0, len(first) - 1, min(_PICTURES, len(first))).astype(int)]
    columns = dict(mask=[colorize(pools[0].load_mask(record), pools[0].palette) for record in chosen])
    for name, pool in zip(names, pools):
        records = {record.id: record for record in pool.records}
        columns[name] = [pool.load_image(records[own.id]) if own.id in records else None for own in chosen]
    report.add_figure('Images', draw_grid(columns), f'The same masks and noise in every pool; seed {seed}, {share:g} '
                      'of the labels.')
