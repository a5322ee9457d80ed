"""Statistics of a study in closed form, and the report that they end in."""
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from worth_study.plan import Study
from worth_study.report import write_report
from worth_study.statistics import best_row, class_iou, miou, paired_class_intervals, paired_interval

PLAN = dict(generators=dict(g='g.py'), critics=dict(c='c.py'), segmentors=dict(fcn='c.py'), shares=(0.5, 1.0),
            pools=dict(plain=dict()),
            rows=dict(real=dict(), twice=dict(iterations=2), plain=dict(pool='plain'), crfm=dict(pool='plain')))


def counts(*images: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
    """Counts (I, 2, K) of images, each intersections and unions of its classes."""
    return np.array(images, np.int64)


def test_iou_is_of_the_sums_and_passes_over_absent_classes() -> None:
    found = counts(((1, 0, 0), (2, 4, 0)), ((3, 0, 0), (6, 4, 0)))
    np.testing.assert_allclose(class_iou(found), [50, 0, np.nan])
    assert miou(found) == 25


def test_a_constant_difference_has_no_spread() -> None:
    ours, theirs = counts(((3, ), (4, ))), counts(((2, ), (4, )))
    assert paired_interval([ours] * 3, [theirs] * 3) == (25, 25, 25)


def test_the_interval_covers_the_mean_and_widens_with_the_seeds_scatter() -> None:
    theirs = [counts(((1, ), (2, )))] * 4
    narrow = paired_interval([counts(((60 + k, ), (100, ))) for k in range(4)], theirs)
    wide = paired_interval([counts(((60 + 10 * k, ), (100, ))) for k in range(4)], theirs)
    assert narrow.low <= narrow.mean <= narrow.high
    assert wide.high - wide.low > narrow.high - narrow.low
    assert paired_interval([theirs[0]], [theirs[0]]) == (0, 0, 0)


def test_the_interval_is_that_of_redrawn_images() -> None:
    ours, theirs = counts(*[((k, ), (8, )) for k in range(8)]), counts(*[((0, ), (8, ))] * 8)
    drawn = np.random.default_rng(1).choice(100 * np.arange(8) / 8, (20000, 8)).mean(1)
    found = paired_interval([ours], [theirs], draws=20000)
    np.testing.assert_allclose(found, [43.75, *np.quantile(drawn, [0.025, 0.975])], atol=0.7)  # of two simulations


def test_class_intervals_average_to_the_whole_and_pass_over_absent_classes() -> None:
    ours = [counts(((3, 1, 0), (4, 4, 0))), counts(((2, 2, 0), (4, 4, 0)))]
    theirs = [counts(((1, 1, 0), (4, 4, 0))), counts(((1, 1, 0), (4, 4, 0)))]
    first, second, absent = paired_class_intervals(ours, theirs)
    assert (first.mean, second.mean) == (37.5, 12.5) and np.isnan(absent).all()
    assert paired_interval(ours, theirs).mean == 25
    assert (first.low, first.high, second.low, second.high) == (25, 50, 0, 25)


def test_rows_of_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match='same seeds and images'):
        paired_interval([counts(((1, ), (2, )))], [counts(((1, ), (2, )), ((1, ), (2, )))])


def test_the_best_row_is_that_of_the_highest_mean() -> None:
    assert best_row(dict(low=[counts(((1, ), (4, )))], high=[counts(((2, ), (4, )))])) == 'high'


def test_rows_are_chosen_on_val_and_reported_on_test(tmp_path: Path) -> None:
    (tmp_path / 'worth.py').write_text(f'worth = {PLAN!r}\n')
    for name in ('g.py', 'c.py'):
        (tmp_path / name).touch()
    study, out = Study.read(tmp_path / 'worth.py'), tmp_path / 'study'
    for share, seed in product(study.shares, (0, 1)):
        case = out / f'share_{share:g}' / f'seed_{seed}'
        (case / 'data').mkdir(parents=True)
        (case / 'data' / 'meta.json').write_text(json.dumps(dict(classes=['one'])))
        for name, val, test in (('real', 10, 30), ('twice', 20, 10), ('plain', 30, 20), ('crfm', 5, 40)):
            (case / 'rows' / 'fcn' / name).mkdir(parents=True)
            for part, hits in (('val', val), ('test', test)):
                np.save(case / 'rows' / 'fcn' / name / f'{part}.npy', counts(*[((hits, ), (100, ))] * 3))
            if (name, seed) != ('crfm', 1):  # which one seed has not finished
                (case / 'rows' / 'fcn' / f'{name}.done').write_text(json.dumps(dict(identity='', seconds=4.0)))
    text = write_report(study, out, [0, 1])
    assert 'of real images only, "twice", and of all rows "plain": 20.00' in text
    assert '| plain | 20.00 | 20.00 | 20.00 | 0.00 | +10.00 [+10.00, +10.00] | – |' in text
    assert '| real | 30.00 | 30.00 | 30.00 | 0.00 | +20.00 [+20.00, +20.00] | +10.00 [+10.00, +10.00] |' in text
    assert 'crfm' not in text
    html = (out / 'report.html').read_text()
    assert html.count('data:image/png') == 1 and 'mIoU over the labelled share' in html


def test_what_judges_read_is_shown_over_the_seeds_and_of_each(tmp_path: Path) -> None:
    plan = PLAN | dict(shares=(1.0, ), judges=dict(unet='c.py'), pools=dict(plain=dict(), half_read=dict()))
    (tmp_path / 'worth.py').write_text(f'worth = {plan!r}\n')
    for name in ('g.py', 'c.py'):
        (tmp_path / name).touch()
    study, out = Study.read(tmp_path / 'worth.py'), tmp_path / 'study'
    for seed, read, pool in ((0, 40, 'plain'), (1, 44, 'plain'), (0, 50, 'half_read')):
        folder = out / 'share_1' / f'seed_{seed}' / 'readings' / 'unet' / pool
        folder.mkdir(parents=True)
        (folder / 'evaluation.json').write_text(json.dumps(dict(metrics={
            'consistency/mIoU': read, 'frechet/distance': 1.5})))
    text = write_report(study, out, [0, 1])
    assert '| plain | 42.00 ± 2.83 (40.00, 44.00) | 1.50 ± 0.00 (1.50, 1.50) | – |' in text
    assert 'half_read' not in text
    assert '| half_read | 50.00 | 1.50 | – |' in write_report(study, out, [0])
