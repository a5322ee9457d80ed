"""A study of worth: statistics in closed form, places that never mix, mistakes by name, and a whole small run."""
import json
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from small_run import ROOT
from worth_study.case import Case
from worth_study.data import PLACE, split_places, write_case
from worth_study.plan import Study
from worth_study.report import write_report
from worth_study.run import run_study
from worth_study.statistics import best_row, class_iou, miou, paired_class_intervals, paired_interval

from mmsynth.pool import Pool
from mmsynth.utils.files import FolderLock

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


PLANS = dict(generators=dict(g='g.py'), critics=dict(c='c.py', x=dict(config='c.py', cross_fitted=True)),
             segmentors=dict(fcn='c.py'), pools=dict(plain=dict()), rows=dict(real=dict()))
ALL = dict(real=dict(), twice=dict(iterations=2), plain=dict(pool='plain'), crfm=dict(pool='plain'))


@pytest.mark.parametrize('plans, option', [
    (dict(rows=dict(real=dict(), plain=dict(pool='none'))), 'rows.plain.pool'),
    (dict(rows=dict(real=dict(ratio=1.5))), 'rows.real'),
    (dict(rows=dict(real=dict(length=2))), 'length'),
    (dict(rows=dict(real=dict(), own=dict(self_training=True, pool='plain'))), 'rows.own.self_training'),
    (dict(rows=dict(real=dict(), on=dict(online=dict()))), 'rows.on.online'),
    (dict(rows=dict(real=dict(), on=dict(pool='plain', online=dict(guidance=None)))), 'rows.on.online` .*guidance'),
    (dict(rows=dict(real=dict(), on=dict(pool='plain', online=dict(critic='none')))), 'rows.on.online.critic'),
    (dict(rows=dict()), 'baseline'),
    (dict(plain='none'), '`plain`'),
    (dict(shares=(0, )), 'shares'),
    (dict(seeds=(1, )), 'seeds'),
    (dict(generator='g.py'), '`generator` and `generators`'),
    (dict(generators=dict(g=dict(config='g.py', unlabelled=1))), 'generators.g.unlabelled'),
    (dict(generators=dict(g=dict(overrides=dict()))), 'generators.g'),
    (dict(critics=dict(c='c.py', both=dict(critics=('c', 'none')))), 'critics.both.critics'),
    (dict(critics=dict(c=dict())), 'critics.c'),
    (dict(critics=dict(c='c.py', pair=dict(type='mmsynth.ReducibleLossCritic', critics=('c', )))), 'critics.pair'),
    (dict(critics=dict(c=dict(config='c.py', looks=0))), 'critics.c'),
    (dict(critics=dict(both=dict(critics=('c', )), c='c.py'),
          pools=dict(plain=dict(guidance=dict(type='mmsynth.CRFM', objective=dict(name='target', targets='critic'))))),
     'pools.plain.guidance.objective'),
    (dict(pools=dict(plain=dict(step=1))), 'step'),
    (dict(pools=dict(plain=dict(generator='none'))), 'pools.plain.generator'),
    (dict(pools=dict(plain=dict(sampling=dict(network=1)))), 'pools.plain.sampling` .*network'),
    (dict(pools=dict(plain=dict(guidance=dict(type='mmsynth.CRFM', stepsize=1)))), 'pools.plain.guidance` .*stepsize'),
    (dict(pools=dict(plain=dict(guidance=dict(type='mmsynth.None')))), 'pools.plain.guidance.type'),
    (dict(pools=dict(plain=dict(guidance=dict(type='mmsynth.CRFM'), critic='n'))), 'pools.plain.critic'),
    (dict(pools=dict(plain=dict(masks=dict(type='mmsynth.TransformedMasks', turns=1)))), 'pools.plain.masks` .*turns'),
    (dict(pools=dict(plain=dict(masks=dict(type='mmsynth.UncertainMasks', critic='x')))), 'pools.plain.masks.critic'),
    (dict(pools=dict(plain=dict(filter=dict(limit=1)))), 'pools.plain.filter` .*limit'),
    (dict(pools=dict(plain=dict(filter=dict(segmentor='x')))), 'pools.plain.filter.segmentor'),
    (dict(pools=dict(plain=dict(filter=dict(sibling_vote='median')))), 'pools.plain.filter.sibling_vote'),
    (dict(pools=dict(live=dict(masks=dict(type='mmsynth.UncertainMasks', critic='runner'))),
          rows=dict(real=dict(), live=dict(pool='live'))), 'pools.live.masks'),
])
def test_mistakes_in_a_config_are_named(tmp_path: Path, plans: dict, option: str) -> None:
    path = tmp_path / 'worth.py'
    path.write_text(f'worth = {PLANS | plans!r}\n')
    for name in ('g.py', 'c.py'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=option):
        Study.read(path)


def test_one_generator_and_one_critic_need_no_names(tmp_path: Path) -> None:
    (tmp_path / 'worth.py').write_text(
        "worth = dict(generator='g.py', critic='c.py', segmentors=dict(fcn='c.py'), pools=dict(plain=dict()), "
        "rows=dict(real=dict(), plain=dict(pool='plain')))\n")
    with pytest.raises(FileNotFoundError, match='g.py'):
        Study.read(tmp_path / 'worth.py')
    for name in ('g.py', 'c.py'):
        (tmp_path / name).touch()
    study = Study.read(tmp_path / 'worth.py')
    pool = study.pools['plain']
    assert study.generators[pool.generator].config == str(tmp_path / 'g.py')
    assert study.critics[pool.critic].config == str(tmp_path / 'c.py')
    assert study.baseline == ('real', ) and study.plain == 'plain'


@pytest.mark.parametrize('name', ['worth', 'worth_objectives'])
def test_the_shipped_studies_read_and_their_files_exist(name: str) -> None:
    study = Study.read(ROOT / 'projects' / 'demo' / 'configs' / f'{name}.py', {'worth.shares': [0.5]})
    assert {'real', 'twice', 'strong'} == set(study.baseline) and study.shares == [0.5]
    files = [plan.config for plan in (*study.generators.values(), *study.critics.values()) if plan.config]
    assert all(Path(file).is_file() for file in (*files, *study.segmentors.values(), *study.judges.values()))
    if name == 'worth':
        assert [study.unfiltered(pool) for pool in ('hard', 'soft', 'vote')] == ['plain', 'plain', 'plain_4']


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four places of two images of two classes, left and right."""
    root, rng = tmp_path_factory.mktemp('places'), np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (root / kind).mkdir()
    for name in (f'{place}_{number}' for place in 'abcd' for number in range(2)):
        mask = np.repeat((np.arange(96) > rng.integers(30, 60)).astype(np.uint8)[None], 96, 0)
        image = (np.array([[200, 80, 60], [40, 120, 200]])[mask] + rng.integers(-20, 20, (96, 96, 3))).astype(np.uint8)
        Image.fromarray(image).save(root / 'images' / f'{name}.png')
        Image.fromarray(mask).save(root / 'masks' / f'{name}.png')
    (root / 'meta.json').write_text(json.dumps(dict(classes=['left', 'right'])))
    return root


def test_a_case_holds_its_places_apart(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / 'data'
    meta = write_case(folder, out, share=0.75, seed=1, downscale=1, num_masks=8)
    names = {part: {path.name[0] for path in (out / 'img_dir' / part).glob('*.png')} for part in
             ('train', 'val', 'test', 'synthesis')}
    assert names == dict(train={'a', 'd'}, val={'c'}, test={'b'}, synthesis={'a', 'd'})
    assert len(list((out / 'img_dir' / 'unlabelled').iterdir())) == 1 and not (out / 'ann_dir' / 'unlabelled').exists()
    assert meta['places'] == ['a', 'd']
    for place, other in ('ad', 'da'):
        listed = (out / 'places' / place / 'synthesis.jsonl').read_text().splitlines()
        assert listed and all(json.loads(line)['source'].startswith(f'ann_dir/synthesis/{place}') for line in listed)
        assert {name[0] for name in (out / 'places' / place / 'others.txt').read_text().split()} == {other}


def test_tiles_have_the_images_of_their_masks(folder: Path, tmp_path: Path) -> None:
    write_case(folder, tmp_path / 'data', share=1.0, seed=0, downscale=1, num_masks=8)
    for line in (tmp_path / 'data' / 'synthesis.jsonl').read_text().splitlines():
        mask, image = (np.array(Image.open(tmp_path / 'data' / path)) for path in json.loads(line).values())
        assert np.array_equal(image[..., 2] > image[..., 0], mask == 1)


def test_data_of_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    meta = write_case(folder, tmp_path / 'data', share=0.75, seed=1, downscale=1, num_masks=4)
    assert write_case(folder, tmp_path / 'data', share=0.75, seed=1, downscale=1, num_masks=4) == meta
    with pytest.raises(ValueError, match='`num_masks`'):
        write_case(folder, tmp_path / 'data', share=0.75, seed=1, downscale=1, num_masks=5)


def test_rows_are_chosen_on_val_and_reported_on_test(tmp_path: Path) -> None:
    (tmp_path / 'worth.py').write_text(f'worth = {PLANS | dict(shares=(0.5, 1.0), rows=ALL)!r}\n')
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


def write_config(path: Path, **changes: object) -> Path:
    """A study of every kind of row, of two iterations each."""
    demo = str(ROOT / 'projects' / 'demo' / 'configs') + '/'
    crfm = dict(type='mmsynth.CRFM', steps=1)
    short = dict(num_steps=2)
    plans = dict(
        generators=dict(plain=demo + 'todsynth.py',
                        raw=dict(config=demo + 'todsynth.py', overrides={'model.mask_dropout': 0.15}, unlabelled=0.5)),
        critics=dict(fcn=demo + 'critic.py', crossed=dict(config=demo + 'critic.py', cross_fitted=True),
                     both=dict(critics=('fcn', 'crossed')),
                     pair=dict(type='mmsynth.ReducibleLossCritic', critics=('fcn', 'fcn'), looks=2)),
        segmentors=dict(fcn=demo + 'critic.py'),
        judges=dict(unet=demo + 'judge.py'),
        pools=dict(
            plain=dict(sampling=short),
            soft=dict(sampling=short, filter=dict(mode='soft', margin=0.5, min_valid=0.0, unseen_classes='keep')),
            crossed=dict(sampling=short, guidance=crfm, critic='both'),
            pair=dict(sampling=short, guidance=crfm | dict(objective='mask'), critic='pair'),
            target=dict(sampling=short, guidance=crfm | dict(objective=dict(name='target', targets='critic'))),
            raw=dict(generator='raw', sampling=dict(num_steps=2, mask_guidance_scale=1.5)),
            unsure=dict(sampling=short, masks=dict(type='mmsynth.TransformedMasks', dataset=dict(
                type='mmsynth.UncertainMasks', critic='fcn', share=0.5)))),
        rows=dict(
            real=dict(), flipped=dict(transforms=[dict(type='RandomFlip', prob=0.5)]),
            self=dict(self_training=True, confidence=0.0), plain=dict(pool='plain'), soft=dict(pool='soft'),
            crossed=dict(pool='crossed'), pair=dict(pool='pair'), target=dict(pool='target'),
            raw=dict(pool='raw'), unsure=dict(pool='unsure', ratio=0.25),
            online=dict(pool='plain', online=dict(begin=1, interval=1, num_per_round=2, max_samples=4))),
        shares=(0.75, ), downscale=1, num_masks=8, generator_iters=2, segmentor_iters=2)
    path.write_text(f'worth = {plans | changes!r}\n')
    return path


ROWS = ('real', 'flipped', 'self', 'plain', 'soft', 'crossed', 'pair', 'target', 'raw', 'unsure', 'online')


@pytest.fixture(scope='module')
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study that has run, as a process of its own."""
    root = tmp_path_factory.mktemp('worth')
    study = Study.read(write_config(root / 'worth.py'))
    assert run_study(study, folder, root / 'study', [0], places=PLACE, jobs=1) == []
    return study, root / 'study'


@pytest.mark.slow
def test_a_study_runs_and_reports_every_row(finished: tuple[Study, Path]) -> None:
    study, out = finished
    text = write_report(study, out, [0])
    assert re.findall(r'^\| (\w+) \|', text.partition('**What judges')[0], re.M) == list(ROWS)
    assert 'minus plain [95 %]' in text and re.search(r'chooses, of real images only, "(real|flipped)"', text)
    html = (out / 'report.html').read_text()
    assert all(word in html for word in ('classes', 'generators/raw', 'rows/fcn/online'))
    case = out / 'share_0.75' / 'seed_0'
    assert json.loads((case / 'generators' / 'plain.done').read_text())['seconds'] > 0
    assert {path.parent.name for path in case.glob('rows/fcn/*/*.pth')} == {'real', 'flipped'}  # what may label
    for name in ROWS:
        counts = np.load(case / 'rows' / 'fcn' / name / 'test.npy')
        assert counts.shape == (2, 2, 2) and (counts[:, 0] <= counts[:, 1]).all()


@pytest.mark.slow
def test_generators_and_pools_are_as_their_options_say(finished: tuple[Study, Path]) -> None:
    case = finished[1] / 'share_0.75' / 'seed_0'
    raw = Config.fromfile(case / 'configs' / 'generators_raw.py')
    assert raw.model.mask_dropout == 0.15 and raw.train_dataloader.sampler.share == 0.5
    pools = {name: Pool.open(case / 'pools' / name) for name in finished[0].pools}
    settings = {name: pool.settings['generator'] for name, pool in pools.items()}
    assert settings['plain'] == settings['crossed'] != settings['raw']
    assert {len(pool) for name, pool in pools.items() if name != 'unsure'} == {8} and len(pools['unsure']) == 4
    assert all(record.mask_origin['of']['source'] == 'uncertain' for record in pools['unsure'].records)


@pytest.mark.slow
def test_a_filtered_pool_has_the_images_of_the_other_and_weights_for_its_row(finished: tuple[Study, Path]) -> None:
    case = finished[1] / 'share_0.75' / 'seed_0'
    images = [sorted((case / 'pools' / name / 'img_dir').iterdir()) for name in ('plain', 'soft')]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*images, strict=True))
    assert len(list((case / 'pools' / 'soft' / 'weights').iterdir())) == 8
    assert not (case / 'pools' / 'plain' / 'weights').exists()
    assert Config.fromfile(case / 'configs' / 'rows_fcn_soft.py').model.type == 'mmsynth.WeightedEncoderDecoder'


@pytest.mark.slow
def test_critics_that_are_cross_fitted_have_not_seen_the_place(finished: tuple[Study, Path]) -> None:
    case = finished[1] / 'share_0.75' / 'seed_0'
    assert {path.name for path in (case / 'critics').glob('*.done')} == {
        'fcn.done', 'crossed_without_c.done', 'crossed_without_d.done'}
    cfg = Config.fromfile(case / 'configs' / 'critics_crossed_without_c.py')
    assert cfg.train_dataloader.dataset.ann_file == 'places/c/others.txt'
    pool = Pool.open(case / 'pools' / 'crossed')
    assert len(pool.settings['guidance']['critic_weights_sha256']) == 2
    assert {Path(record.source_mask).name[0] for record in pool.records} == {'c', 'd'}
    assert all(record.guidance['trace'] for record in pool.records)


@pytest.mark.slow
def test_critics_of_several_and_class_losses_reach_the_guidance(finished: tuple[Study, Path]) -> None:
    case = finished[1] / 'share_0.75' / 'seed_0'
    settings = {name: Pool.open(case / 'pools' / name).settings['guidance']['settings'] for name in ('pair', 'target')}
    assert settings['pair']['critic']['type'] == 'mmsynth.AugmentedCritic'
    assert settings['pair']['critic']['critic'].keys() == {'type', 'teacher', 'learner'}
    assert settings['target']['objective']['targets'] == str(case / 'critics' / 'fcn' / 'class_losses.json')


@pytest.mark.slow
def test_a_judge_reads_every_pool_and_has_seen_all_places(finished: tuple[Study, Path]) -> None:
    study, out = finished
    case = out / 'share_0.75' / 'seed_0'
    assert {path.stem for path in case.glob('readings/unet/*.done')} == set(study.pools)
    metrics = json.loads((case / 'readings' / 'unet' / 'plain' / 'evaluation.json').read_text())['metrics']
    text = write_report(study, out, [0])
    assert f"| plain | {metrics['consistency/mIoU']:.2f} ± 0.00 | {metrics['frechet/distance']:.2f} ± 0.00 |" in text
    datasets = Config.fromfile(case / 'configs' / 'judges_unet.py').train_dataloader.dataset.datasets
    assert [dataset.data_prefix.img_path for dataset in datasets] == ['img_dir/train', 'img_dir/val', 'img_dir/test']


@pytest.mark.slow
def test_self_training_labels_the_unlabelled_images_only(finished: tuple[Study, Path]) -> None:
    case = finished[1] / 'share_0.75' / 'seed_0'
    pool = Pool.open(case / 'pseudo_labels' / 'fcn_self')
    assert {record.source_mask for record in pool.records} == {
        path.name for path in (case / 'data' / 'img_dir' / 'unlabelled').iterdir()}
    assert all((pool.load_mask(record) != 255).all() for record in pool.records)  # `confidence` is 0


@pytest.mark.slow
def test_an_online_row_generates_while_it_trains(finished: tuple[Study, Path]) -> None:
    case = finished[1] / 'share_0.75' / 'seed_0'
    assert len(Pool.open(case / 'rows' / 'fcn' / 'online' / 'pool')) >= 2


@pytest.mark.slow
def test_what_is_there_is_not_made_again_in_another_folder_too(
        finished: tuple[Study, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(cfg: Config) -> None:
        trained.append(Path(cfg.work_dir).name)
        raise RuntimeError('it is trained')

    monkeypatch.setattr('worth_study.case.train', train)
    shutil.copytree(finished[1], tmp_path / 'moved')
    case = Case(finished[0], folder, tmp_path / 'moved', places=PLACE, share=0.75, seed=0)
    assert case.run() == [] == trained
    (case.root / 'rows' / 'fcn' / 'plain.done').unlink()  # as a killed run leaves it
    assert [text.split(':')[0] for text in case.run()] == ['fcn, plain'] and trained == ['plain']


@pytest.mark.slow
def test_a_stage_of_other_settings_is_refused(finished: tuple[Study, Path], folder: Path, tmp_path: Path) -> None:
    study = Study.read(write_config(tmp_path / 'worth.py', rows=dict(real=dict(), plain=dict(pool='plain', ratio=0.25),
                                                                     raw=dict(pool='raw'))))
    failed = Case(study, folder, finished[1], places=PLACE, share=0.75, seed=0).run()
    assert len(failed) == 1 and '`rows.fcn.plain`' in failed[0]


@pytest.mark.slow
@pytest.mark.process
def test_a_case_that_fails_takes_no_other_with_it(finished: tuple[Study, Path], folder: Path, tmp_path: Path) -> None:
    study = Study.read(write_config(tmp_path / 'worth.py', rows=dict(
        real=dict(), broken=dict(transforms=[dict(type='None')]), flipped=dict()), shares=(0.75, 1.0)))
    out = tmp_path / 'study'
    (out / 'share_0.75' / 'seed_0').mkdir(parents=True)
    lock = FolderLock(out / 'share_0.75' / 'seed_0')  # another run is there
    failed = run_study(study, folder, out, [0], places=PLACE, jobs=1)
    lock.release()
    assert [line.split('/')[-3] for line in (text.split(': ')[0] for text in failed)] == ['share_0.75', 'share_1']
    assert 'broken' in failed[1]
    assert {path.stem for path in out.rglob('*.done')} == {'real', 'flipped'}


@pytest.mark.slow
def test_the_tool_reports_what_is_there(finished: tuple[Study, Path], tmp_path: Path) -> None:
    config = write_config(tmp_path / 'worth.py')
    command = [sys.executable, str(ROOT / 'tools' / 'analysis_tools' / 'worth.py'), str(config), '--data', 'none',
               '--out-dir', str(finished[1]), '--seeds', '0', '--report-only', '--cfg-options', 'worth.plain=soft']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'minus soft [95 %]' in result.stdout
