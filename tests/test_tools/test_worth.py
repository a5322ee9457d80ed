"""A study of worth: statistics in closed form, places that never mix, mistakes by name, and a whole small run."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import ROOT
from worth_study.data import PLACE, split_places, write_case
from worth_study.plan import Study
from worth_study.statistics import best_row, class_iou, miou, paired_interval

STEMS = [f'{place}_{number}' for place in ('a', 'b', 'c', 'd') for number in range(4)]


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


def test_rows_of_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match='same seeds and images'):
        paired_interval([counts(((1, ), (2, )))], [counts(((1, ), (2, )), ((1, ), (2, )))])


def test_the_best_row_is_that_of_the_highest_mean() -> None:
    assert best_row(dict(low=[counts(((1, ), (4, )))], high=[counts(((2, ), (4, )))])) == 'high'


@pytest.mark.parametrize('seed', range(5))
def test_a_place_is_in_one_part_only(seed: int) -> None:
    parts = split_places(STEMS, PLACE, 0.5, seed)
    assert sorted(stem for stems in parts.values() for stem in stems) == STEMS
    held = {part: {stem[0] for stem in parts[part]} for part in ('test', 'val')}
    assert held == dict(test={'abcd'[seed % 4]}, val={'abcd'[(seed + 1) % 4]})
    assert len(parts['train']) == len(parts['unlabelled']) == 4


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    quarter, half = (set(split_places(STEMS, PLACE, share, 0)['train']) for share in (0.25, 0.5))
    assert quarter < half and len(quarter) == 2


@pytest.mark.parametrize('pattern, stems', [('^nothing', STEMS), ('^([ab])', STEMS), (PLACE, STEMS[:8])])
def test_places_that_cannot_be_told_are_refused(pattern: str, stems: list[str]) -> None:
    with pytest.raises(ValueError, match='`--places`'):
        split_places(stems, pattern, 1.0, 0)


@pytest.mark.parametrize('lines, option', [
    ("rows=dict(real=dict(), plain=dict(pool='none'))", 'rows.plain.pool'),
    ('rows=dict(real=dict(ratio=1.5))', 'rows.real'),
    ('rows=dict(real=dict(length=2))', 'rows.real'),
    ('rows=dict(real=dict()), pools=dict(plain=dict(step=1))', 'pools.plain'),
    ('rows=dict(real=dict()), shares=(0, )', 'shares'),
    ('rows=dict()', 'baseline'),
    ('rows=dict(real=dict()), seeds=(1, )', 'seeds'),
])
def test_mistakes_in_a_config_are_named(tmp_path: Path, lines: str, option: str) -> None:
    path = tmp_path / 'worth.py'
    path.write_text(f"worth = dict(generator='g.py', critic='c.py', segmentors=dict(fcn='c.py'), {lines})\n")
    with pytest.raises(ValueError, match=f'`.*{option}|{option}'):
        Study.read(path)


def test_the_shipped_study_reads_and_its_files_exist() -> None:
    study = Study.read(ROOT / 'projects' / 'demo' / 'configs' / 'worth.py')
    assert {'real', 'twice', 'strong'} == set(study.baseline)
    assert all(Path(file).is_file() for file in (study.generator, study.critic, *study.segmentors.values()))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three places of two images of two classes, left and right."""
    root, rng = tmp_path_factory.mktemp('places'), np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (root / kind).mkdir()
    for name in (f'{place}_{number}' for place in 'abc' for number in range(2)):
        mask = np.repeat((np.arange(96) > rng.integers(30, 60)).astype(np.uint8)[None], 96, 0)
        image = (np.array([[200, 80, 60], [40, 120, 200]])[mask] + rng.integers(-20, 20, (96, 96, 3))).astype(np.uint8)
        Image.fromarray(image).save(root / 'images' / f'{name}.png')
        Image.fromarray(mask).save(root / 'masks' / f'{name}.png')
    (root / 'meta.json').write_text(json.dumps(dict(classes=['left', 'right'])))
    return root


def test_a_case_holds_its_places_apart(folder: Path, tmp_path: Path) -> None:
    meta = write_case(folder, tmp_path / 'data', share=0.5, seed=1, downscale=1, num_masks=4)
    names = {part: {path.name[0] for path in (tmp_path / 'data' / 'img_dir' / part).glob('*.png')}
             for part in ('train', 'val', 'test', 'unlabelled')}
    assert names == dict(train={'a'}, val={'c'}, test={'b'}, unlabelled={'a'})
    assert not (tmp_path / 'data' / 'ann_dir' / 'unlabelled').exists()
    assert {path.name[0] for path in (tmp_path / 'data' / 'ann_dir' / 'synthesis').glob('*.png')} == {'a'}
    assert write_case(folder, tmp_path / 'data', share=0.5, seed=1) == meta


@pytest.mark.slow
def test_a_study_runs_resumes_and_reports(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / 'worth.py'
    config.write_text(f"""
_base_ = [{str(ROOT / 'projects' / 'demo' / 'configs' / 'worth.py')!r}]
demo = {str(ROOT / 'projects' / 'demo' / 'configs')!r}
worth = dict(
    generator=demo + '/todsynth.py', critic=demo + '/critic.py',
    segmentors=dict(_delete_=True, fcn=demo + '/critic.py'),
    pools=dict(_delete_=True, plain=dict(), both=dict(guidance=dict(type='mmsynth.CRFM', steps=1), filter=dict())),
    rows=dict(_delete_=True, real=dict(), plain=dict(pool='plain'), both=dict(pool='both')),
    downscale=1, num_masks=2, generator_iters=2, segmentor_iters=2)
""")

    def run() -> str:
        """The study's tables."""
        command = [sys.executable, str(ROOT / 'tools' / 'analysis_tools' / 'worth.py'), str(config), '--data',
                   str(folder), '--out-dir', str(tmp_path / 'study'), '--seeds', '0', '--jobs', '1']
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return (tmp_path / 'study' / 'worth.md').read_text()

    first = run()
    case = tmp_path / 'study' / 'share_1' / 'seed_0'
    assert all(f'| {row} |' in first for row in ('real', 'plain', 'both'))
    assert (tmp_path / 'study' / 'report.html').is_file()
    assert json.loads((case / 'pool_both' / 'pool.json').read_text())['settings']['guidance'] is not None
    assert (case / 'pool_both' / 'kept.txt').is_file() and not (case / 'pool_plain' / 'kept.txt').exists()
    weights = (case / 'generator' / 'iter_2.pth').stat().st_mtime_ns
    (case / 'rows' / 'fcn' / 'plain' / 'test.npy').unlink()  # as a killed run leaves it
    assert run() == first and (case / 'generator' / 'iter_2.pth').stat().st_mtime_ns == weights
