"""What a demo says at its end: tables on the terminal, preview.png and report.html."""
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from mmsynth.datasets.transforms.references import fit_reference
from mmsynth.evaluation import read_image
from mmsynth.pool import Pool
from mmsynth.visualization import (
    Report,
    colorize,
    count_classes,
    draw_grid,
    plot_class_balance,
    plot_guidance,
    plot_results,
    save_png,
)
from projects.demo.demo import Demo
from projects.demo.plan import Plan
from projects.demo.result import SeedResult

Rows = list[list[str]]
_PREVIEW_ROWS = 8
_READ_BACK = 'mIoU of masks read back from synthetic images (%)'
_SWAP = 'Colours of synthetic images and of references'


def report_demo(demo: Demo, results: Sequence[SeedResult]) -> None:
    """Print the tables and write ``report.html`` and ``preview.png`` to the demo's folder."""
    seeds = [*(f'seed {result.seed}' for result in results), 'mean ± std']
    held_out = 'mIoU on held-out real images' + (' of the target domain' if demo.plan.transfers else '') + ' (%)'
    tables = {held_out: (['trained on', *seeds], segmentation_rows(results, demo.plan)),
              _READ_BACK: (['read by', 'images', *seeds], consistency_rows(results, demo.plan))}
    if demo.plan.transfers:
        tables[_SWAP] = ['images generated with', 'measure', *seeds], swap_rows(results)
    console = Console()
    for title, (columns, rows) in tables.items():
        _print(console, title, columns, rows)
    preview = draw_demo_preview(demo, results[0])
    save_png(preview, demo.out_dir / 'preview.png')
    report = Report('mmsynth demo', _summary(demo, results))
    report.add_figure('Samples', preview, 'Mask; then synthetic images and what the judge reads in each, all of the '
                      'same masks and noise.')
    note = 'Every row trains a segmentor of the same config for the same number of iterations.'
    if demo.trainings > 1:
        note = note[:-1] + f', {demo.trainings} times with other weights and batches; a figure is their mean.'
    if demo.plan.transfers:
        note += " The real images of all but the first take the target's colours."
    report.add_table(held_out, *tables[held_out], note=note)
    report.add_figure('', plot_results({title: [result.miou[row] for result in results]
                                        for row, title in demo.plan.titles.items()}),
                      'One dot per seed, with mean and spread.')
    report.add_table(_READ_BACK, *tables[_READ_BACK], note='The judge is of another architecture than the critic, '
                     'trained on other or more images, and never guides. The critic guided the CRFM images, so its own '
                     'reading of them is no evidence.')
    if demo.plan.transfers:
        report.add_table(_SWAP, *tables[_SWAP], note='Means and standard deviations of red, green and blue; distances '
                         'of the means over all images, in levels of 0 to 255. Moved: the way that images went when '
                         'their references were swapped, as a share of the way that the references are apart.')
    pool = Pool.open(results[0].pools['crfm'])
    report.add_figure('Guidance', plot_guidance([pool.load_trace(record) for record in pool.records]),
                      "The critic's loss before and after each correction.")
    report.add_figure('Class balance', _class_balance(demo, pool), 'Pixels per class: labelled images, and with the '
                      'synthetic ones.')
    report.add_table('Time', ['stage', 'seconds'], [[stage, f'{seconds:.0f}']
                                                    for stage, seconds in results[0].seconds.items()])
    report.write(demo.out_dir / 'report.html')
    console.print(f'Pictures and details: {demo.out_dir}/preview.png, {demo.out_dir}/report.html')


def segmentation_rows(results: Sequence[SeedResult], plan: Plan) -> Rows:
    """A row per training set: its title, each seed's mIoU, mean and spread."""
    return [[title, *_values([result.miou[row] for result in results])] for row, title in plan.titles.items()]


def consistency_rows(results: Sequence[SeedResult], plan: Plan) -> Rows:
    """A row per reader and kind of image, and their difference seed by seed."""
    rows: Rows = []
    for reader in ('judge', 'critic'):
        scores = {kind: [100 * result.consistency[kind][reader].mean_iou for result in results] for kind in plan.rows}
        rows += [[reader, kind, *_values(scores[kind])] for kind in plan.rows]
        gains = [crfm - plain for plain, crfm in zip(scores['plain'], scores['crfm'])]
        rows.append([reader, 'CRFM - plain', *_values(gains, signed=True)])
        if plan.transfers:
            gains = [plain - source for source, plain in zip(scores['source'], scores['plain'])]
            rows.append([reader, 'plain - source', *_values(gains, signed=True)])
    return rows + [[reader, 'held-out real', *_values([result.reference_miou[reader] for result in results])]
                   for reader in ('judge', 'critic')]


def swap_rows(results: Sequence[SeedResult]) -> Rows:
    """How far the colours of images are from those of both kinds of references, and how far they moved."""
    swaps = [result.swap for result in results]
    rows = [[f'{domain} references', f'distance to {other} references',
             *_values([getattr(swap, which)[index] for swap in swaps])]
            for domain, which in (('source', 'first'), ('target', 'second'))
            for index, other in enumerate(('source', 'target'))]
    return [*rows, ['both', 'moved', *_values([swap.moved for swap in swaps])]]


def draw_demo_preview(demo: Demo, result: SeedResult) -> np.ndarray:
    """Masks, every kind of synthetic image, and the judge's reading of each."""
    pools = {row: Pool.open(result.pools[row]) for row in demo.plan.rows}
    judge, palette = demo.reader('judge', result.seed), demo.meta['palette']
    records = {row: {record.id: record for record in pool.records} for row, pool in pools.items()}
    chosen = [name for name in records['plain'] if all(name in images for images in records.values())]
    chosen = chosen[::max(1, len(chosen) // _PREVIEW_ROWS)][:_PREVIEW_ROWS]
    columns: dict[str, list[np.ndarray]] = {
        'mask': [colorize(pools['plain'].load_mask(records['plain'][name]), palette) for name in chosen]}
    for row, pool in pools.items():
        images = [pool.load_image(records[row][name]) for name in chosen]
        if demo.plan.transfers and row != 'crfm':  # whose references are those of 'plain'
            columns[f'{row} reference'] = [_reference(records[row][name].reference, images[0]) for name in chosen]
        columns[row] = images
        columns[f'{row}, as read'] = [colorize(read_image(judge, image), palette) for image in images]
    return draw_grid(columns, legend=list(zip(demo.meta['classes'], palette)))


def _reference(path: str, like: np.ndarray) -> np.ndarray:
    """A reference as the generator saw it: the middle, in the size of an image."""
    with Image.open(path) as file:
        return fit_reference(np.asarray(file.convert('RGB')), like.shape[:2], 'crop')


def _summary(demo: Demo, results: Sequence[SeedResult]) -> dict[str, str]:
    return {
        'data': demo.meta.get('name', str(demo.data_root)),
        'classes': ', '.join(demo.meta['classes']),
        'generator config': demo.generator_file,
        **({'control': demo.control} if demo.control else {}),
        'latent codec': demo.codec,
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
