"""What a demo says at its end: tables on the terminal, preview.png and report.html."""
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from mmsynth.apis.demo import ROW_TITLES, SYNTHETIC_ROWS, Demo, SeedResult
from mmsynth.evaluation import read_image
from mmsynth.pool import Pool
from mmsynth.visualization import (Report, colorize, count_classes, draw_grid, plot_class_balance, plot_guidance,
                                   plot_results, save_png)

Rows = list[list[str]]
_PREVIEW_ROWS = 8


def report_demo(demo: Demo, results: Sequence[SeedResult]) -> None:
    """Print the tables and write ``report.html`` and ``preview.png`` to the demo's folder."""
    segmentation, consistency = segmentation_rows(results), consistency_rows(results)
    columns = ['trained on', *(f'seed {result.seed}' for result in results), 'mean ± std']
    readers = ['read by', 'images', *columns[1:]]
    console = Console()
    _print(console, 'mIoU on held-out real images (%)', columns, segmentation)
    _print(console, 'mIoU of masks read back from synthetic images (%)', readers, consistency)
    preview = draw_demo_preview(demo, results[0])
    save_png(preview, demo.out_dir / 'preview.png')
    report = Report('mmsynth demo', _summary(demo, results))
    report.add_figure('Samples', preview, 'Mask; plain synthetic image and what the judge reads in it; the same mask '
                      'and noise with CRFM, and what the judge reads.')
    report.add_table('mIoU on held-out real images (%)', columns, segmentation,
                     note='Every row trains one segmentor of the same config for the same number of iterations.')
    report.add_figure('', plot_results({ROW_TITLES[row]: [result.miou[row] for result in results]
                                        for row in ROW_TITLES}), 'One dot per seed, with mean and spread.')
    report.add_table('mIoU of masks read back from synthetic images (%)', readers, consistency, note='The judge is of '
                     'another architecture than the critic, trained on other or more images, and never guides. The '
                     'critic guided the CRFM images, so its own reading of them is no evidence.')
    pool = Pool.open(results[0].pools['crfm'])
    report.add_figure('Guidance', plot_guidance([record.guidance['trace'] for record in pool.records]),
                      "The critic's loss before and after each correction.")
    report.add_figure('Class balance', _class_balance(demo, pool), 'Pixels per class: labelled images, and with the '
                      'synthetic ones.')
    report.add_table('Time', ['stage', 'seconds'], [[stage, f'{seconds:.0f}']
                                                    for stage, seconds in results[0].seconds.items()])
    report.write(demo.out_dir / 'report.html')
    console.print(f'Pictures and details: {demo.out_dir}/preview.png, {demo.out_dir}/report.html')


def segmentation_rows(results: Sequence[SeedResult]) -> Rows:
    """A row per training set: its title, each seed's mIoU, mean and spread."""
    return [[title, *_values([result.miou[row] for result in results])] for row, title in ROW_TITLES.items()]


def consistency_rows(results: Sequence[SeedResult]) -> Rows:
    """A row per reader and kind of image, and their difference seed by seed."""
    rows: Rows = []
    for reader in ('judge', 'critic'):
        scores = {kind: [100 * result.consistency[kind][reader].mean_iou for result in results]
                  for kind in SYNTHETIC_ROWS}
        gains = [crfm - plain for plain, crfm in zip(scores['plain'], scores['crfm'])]
        rows += [[reader, kind, *_values(scores[kind])] for kind in SYNTHETIC_ROWS]
        rows.append([reader, 'CRFM - plain', *_values(gains, signed=True)])
    rows += [[reader, 'held-out real', *_values([result.reference_miou[reader] for result in results])]
             for reader in ('judge', 'critic')]
    return rows


def draw_demo_preview(demo: Demo, result: SeedResult) -> np.ndarray:
    """Masks, plain and CRFM images, and the judge's reading of both."""
    pools = {row: Pool.open(result.pools[row]) for row in SYNTHETIC_ROWS}
    judge, palette = demo.reader('judge', result.seed), demo.meta['palette']
    records = {row: {record.id: record for record in pool.records} for row, pool in pools.items()}
    chosen = list(records['plain'])
    chosen = chosen[::max(1, len(chosen) // _PREVIEW_ROWS)][:_PREVIEW_ROWS]
    columns: dict[str, list[np.ndarray]] = {
        'mask': [colorize(pools['plain'].load_mask(records['plain'][name]), palette) for name in chosen]}
    for row, pool in pools.items():
        images = [pool.load_image(records[row][name]) for name in chosen]
        columns[row] = images
        columns[f'{row}, as read'] = [colorize(read_image(judge, image), palette) for image in images]
    return draw_grid(columns, legend=list(zip(demo.meta['classes'], palette)))


def _summary(demo: Demo, results: Sequence[SeedResult]) -> dict[str, str]:
    return {
        'data': demo.meta.get('name', str(demo.data_root)),
        'classes': ', '.join(demo.meta['classes']),
        'generator config': demo.preset.generator,
        'control': demo.control,
        'synthetic images': str(len(Pool.open(results[0].pools['plain']))),
        'seeds': ', '.join(str(result.seed) for result in results),
        'minutes': ', '.join(f'{sum(result.seconds.values()) / 60:.1f}' for result in results),
    }


def _class_balance(demo: Demo, pool: Pool) -> bytes:
    masks = [np.asarray(Image.open(path)) for path in sorted((demo.data_root / 'ann_dir' / 'train').glob('*.png'))]
    before = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)[:len(pool.classes)]
    after = before + count_classes(pool)
    return plot_class_balance(before.tolist(), after.tolist(), pool.classes, pool.palette)


def _values(values: Sequence[float], *, signed: bool = False) -> list[str]:
    form = '{:+.2f}' if signed else '{:.2f}'
    spread = f' ± {stdev(values):.2f}' if len(values) > 1 else ' (one seed)'
    return [*(form.format(value) for value in values), form.format(mean(values)) + spread]


def _print(console: Console, title: str, columns: Sequence[str], rows: Rows) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
