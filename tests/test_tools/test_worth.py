"""A small study of worth from end to end: what each stage makes, and what a second call does."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from small_run import ROOT
from worth_study.case import Case
from worth_study.data import PLACE, write_case
from worth_study.folders import row_counts
from worth_study.plan import Study
from worth_study.report import write_report
from worth_study.run import run_study

from mmsynth.pool import Pool
from mmsynth.utils.files import FolderLock


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


def write_config(path: Path, **changes: object) -> Path:
    """A study of every kind of row, of two iterations each."""
    demo = str(ROOT / 'projects' / 'demo' / 'configs') + '/'
    crfm = dict(type='mmsynth.CRFM', steps=1)
    short = dict(num_steps=2)
    plans = dict(
        generators=dict(plain=demo + 'todsynth.py',
                        raw=dict(config=demo + 'todsynth.py', overrides={'model.mask_dropout': 0.15}, unlabelled=0.5)),
        critics=dict(fcn=demo + 'critic.py',
                     crossed=dict(config=demo + 'critic.py', cross_fitted=True, learning_rate=0.25),
                     both=dict(critics=('fcn', 'crossed')),
                     pair=dict(type='mmsynth.ReducibleLossCritic', critics=('fcn', 'fcn'), looks=2)),
        segmentors=dict(fcn=demo + 'critic.py'),
        judges=dict(unet=demo + 'judge.py'),
        pools=dict(
            plain=dict(sampling=short),
            soft=dict(sampling=short, filter=dict(mode='soft', margin=0.5, min_valid=0.0, unseen_classes='keep')),
            crossed=dict(sampling=short, guidance=crfm, critic='both'),
            latent=dict(sampling=short, guidance=crfm, latent_critic=True),
            pair=dict(sampling=short, guidance=crfm | dict(objective='mask'), critic='pair'),
            target=dict(sampling=short, guidance=crfm | dict(objective=dict(name='target', targets='critic'))),
            raw=dict(generator='raw', sampling=dict(num_steps=2, mask_guidance_scale=1.5)),
            unsure=dict(sampling=short, masks=dict(type='mmsynth.TransformedMasks', dataset=dict(
                type='mmsynth.UncertainMasks', critic='fcn', share=0.5)))),
        rows=dict(
            real=dict(), flipped=dict(transforms=[dict(type='RandomFlip', prob=0.5)], learning_rate=0.5),
            self=dict(self_training=True, confidence=0.0), plain=dict(pool='plain'), soft=dict(pool='soft'),
            crossed=dict(pool='crossed'), latent=dict(pool='latent'), pair=dict(pool='pair'),
            target=dict(pool='target'), raw=dict(pool='raw'), unsure=dict(pool='unsure', ratio=0.25, mixed=0.5),
            online=dict(pool='plain', online=dict(begin=1, interval=1, num_per_round=2, max_samples=4))),
        shares=(0.75, ), downscale=1, num_masks=8, generator_iters=2, segmentor_iters=2)
    path.write_text(f'worth = {plans | changes!r}\n')
    return path


ROWS = ('real', 'flipped', 'self', 'plain', 'soft', 'crossed', 'latent', 'pair', 'target', 'raw', 'unsure', 'online')


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
def test_a_row_trains_at_a_multiple_of_the_config_s_rate(finished: tuple[Study, Path]) -> None:
    configs = [Config.fromfile(finished[1] / 'share_0.75' / 'seed_0' / 'configs' / f'rows_fcn_{row}.py')
               for row in ('real', 'flipped')]
    for rates in ([cfg.optim_wrapper.optimizer.lr for cfg in configs],
                  [cfg.param_scheduler[0].eta_max for cfg in configs]):
        assert rates[1] == rates[0] / 2


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
    whole = Config.fromfile(case / 'configs' / 'critics_fcn.py')
    assert cfg.optim_wrapper.optimizer.lr == whole.optim_wrapper.optimizer.lr / 4
    pool = Pool.open(case / 'pools' / 'crossed')
    assert len(pool.settings['guidance']['critic_weights_sha256']) == 2
    assert {Path(record.source_mask).name[0] for record in pool.records} == {'c', 'd'}
    assert all(pool.load_trace(record) for record in pool.records)


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
    assert f"| plain | {metrics['consistency/mIoU']:.2f} | {metrics['frechet/distance']:.2f} |" in text
    datasets = Config.fromfile(case / 'configs' / 'judges_unet.py').train_dataloader.dataset.datasets
    assert [dataset.data_prefix.img_path for dataset in datasets] == ['img_dir/train', 'img_dir/val', 'img_dir/test']


@pytest.mark.slow
@pytest.mark.parametrize('rows, stages', [
    (['real', 'plain', 'online'], 7),  # a generator, a pool, three rows, a judge and what it reads
    (['real', 'crossed', 'latent'], 11),  # a generator, a critic, a latent one, two pools, three rows, a judge's two
    (list(ROWS), None)])
def test_the_bar_counts_what_the_rows_asked_for_need(
        rows: list[str], stages: int | None, finished: tuple[Study, Path], folder: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.read(finished[1].parent / 'worth.py', rows=rows)
    assert run_study(study, folder, finished[1], [0], places=PLACE, jobs=1) == []
    done, total = re.search(r'(\d+)/(\d+)', capsys.readouterr().err).groups()
    assert done == total and stages in (None, int(total))


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
def test_a_row_that_is_trained_again_keeps_its_first_training(
        finished: tuple[Study, Path], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(finished[1], tmp_path / 'study')
    config = write_config(tmp_path / 'worth.py', trainings=2, rows=dict(real=dict(), plain=dict(pool='plain')))
    case = Case(Study.read(config), folder, tmp_path / 'study', places=PLACE, share=0.75, seed=0)
    row = case.root / 'rows' / 'fcn' / 'plain'
    before = np.load(row / 'test.npy')
    assert row_counts(case.root, 'fcn', 'plain', 'test', 2) is None
    assert case.run() == []
    again = np.load(row / 'training_2' / 'test.npy')
    assert (np.load(row / 'test.npy') == before).all()
    assert (row_counts(case.root, 'fcn', 'plain', 'test', 2) == before + again).all()
    configs = [Config.fromfile(case.root / 'configs' / f'rows_fcn_plain{name}.py') for name in ('', '_training_2')]
    assert configs[0].randomness.seed == 0 != configs[1].randomness.seed


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
               '--out-dir', str(finished[1]), '--seeds', '0', '--report-only', '--rows', 'real', 'soft',
               '--cfg-options', 'worth.plain=soft']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'minus soft [95 %]' in result.stdout
    rows = [line.split(' | ')[0] for line in result.stdout.split('\n') if line.startswith('| ')]
    assert rows[2:4] == ['| real', '| soft'] and '| flipped' not in rows
