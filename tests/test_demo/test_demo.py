"""``make demo SMOKE=1``: three iterations of everything, as a command, and what it leaves behind."""
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmsynth.evaluation import Consistency
from mmsynth.models.networks import CONTROLS
from mmsynth.pool import Pool
from mmsynth.registry import MODELS
from mmsynth.utils.hashes import file_hash
from projects.demo.colours import ReferenceSwap
from projects.demo.demo import Demo
from projects.demo.plan import CODECS, PRESETS, make_plan
from projects.demo.report import consistency_rows, segmentation_rows, swap_rows
from projects.demo.result import SeedResult
from projects.demo.stages import Stages

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TITLES = make_plan('todsynth', Path()).titles


@pytest.fixture(scope='module')
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a smoke run."""
    out = tmp_path_factory.mktemp('demo') / 'out'
    run = subprocess.run([sys.executable, str(ROOT / 'projects' / 'demo'), '--smoke', '--generator', 'todsynth',
                          '--out-dir', str(out)], capture_output=True, text=True, cwd=out.parent, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return out, run.stdout


def test_the_table_has_every_row_with_a_measured_number(smoke: tuple[Path, str]) -> None:
    _, output = smoke
    for title in (*TITLES.values(), 'CRFM - plain'):
        line = next(line for line in output.splitlines() if title in line)
        assert any(character.isdigit() for character in line), line


def test_pictures_report_and_configs_are_written(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    assert np.asarray(Image.open(out / 'preview.png')).std() > 0
    page = (out / 'report.html').read_text()
    assert 'real + CRFM synthetic' in page and 'data:image/png;base64' in page
    assert list((out / 'seed_0' / 'generator' / 'previews').glob('iter_3.png'))
    for stage in ('judge', 'generator', *TITLES):
        cfg = Config.fromfile(out / 'seed_0' / 'configs' / f'{stage}.py')
        assert cfg.train_cfg.max_iters == 3


def test_every_segmentor_trains_equally_long_and_is_judged_on_real_images(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    configs = [Config.fromfile(out / 'seed_0' / 'configs' / f'{row}.py') for row in TITLES]
    assert len({str(cfg.train_cfg) + str(cfg.optim_wrapper) + str(cfg.model) for cfg in configs}) == 1
    assert {str(cfg.val_dataloader.dataset.data_root) for cfg in configs} == {str(out / 'data')}
    assert len({cfg.randomness.seed for cfg in configs}) == 1


def test_both_pools_generate_the_same_masks_from_the_same_noise(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    pool = Pool.open(out / 'seed_0' / 'pool_crfm')
    plain, crfm = Pool.open(out / 'seed_0' / 'pool_plain').records, pool.records
    assert [(record.id, record.seed) for record in plain] == [(record.id, record.seed) for record in crfm]
    assert len(plain) == 4 and all(record.guidance is None for record in plain)
    assert all(len(pool.load_trace(record)) == 23 for record in crfm)


def test_the_online_row_generates_while_it_trains(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    cfg = Config.fromfile(out / 'seed_0' / 'configs' / 'online.py')
    assert cfg.train_dataloader.batch_sampler.ratio == 0.5 and cfg.train_cfg.max_iters == 3
    pool = Pool.open(out / 'seed_0' / 'pool_online')
    assert len(pool) > 0 and all(record.guidance['name'] == 'CRFM' for record in pool.records)


@pytest.mark.parametrize('settings, message', [
    (dict(preset='quick'), f"`preset` must be one of {', '.join(PRESETS)}, got 'quick'"),
    (dict(generator='gan'), "`generator` must be one of todsynth, tisynth, got 'gan'"),
    (dict(generator='tisynth', control='siamese'), "`control` chooses among the networks of todsynth, got 'siamese'"),
    (dict(trainings=0), '`trainings` must be at least 1, got 0'),
    (dict(codec='vae'), "`codec` must be one of pca, autoencoder, got 'vae'"),
    (dict(control='tripel'), "`control` must be one of triple, siamese, adapter, got 'tripel'"),
])
def test_an_unknown_choice_is_named_before_anything_is_drawn(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Demo(ROOT / 'projects' / 'demo' / 'configs', tmp_path / 'out', **settings)
    assert not (tmp_path / 'out').exists()


class TestControl:

    @staticmethod
    def demo(out_dir: Path, **settings) -> Demo:
        return Demo(ROOT / 'projects' / 'demo' / 'configs', out_dir, preset='smoke', **settings)

    @pytest.mark.parametrize('control', CONTROLS)
    def test_it_is_the_generator_s(self, control: str, tmp_path: Path) -> None:
        cfg = self.demo(tmp_path, control=control)._generator_config(seed=0)
        assert MODELS.build(cfg.model.network).control == control

    def test_a_scheme_s_result_is_not_another_s(self, tmp_path: Path) -> None:
        siamese, path = self.demo(tmp_path, control='siamese'), tmp_path / 'result.json'
        SeedResult(3).write(path, siamese.settings)
        assert SeedResult.read(path, siamese.settings) == SeedResult(3)
        assert SeedResult.read(path, self.demo(tmp_path).settings) is None

    def test_a_config_s_result_is_not_another_s(self, tmp_path: Path) -> None:
        configs, path = tmp_path / 'projects' / 'demo' / 'configs', tmp_path / 'result.json'
        for folder in (configs, tmp_path / 'configs' / '_base_'):
            shutil.copytree(ROOT / folder.relative_to(tmp_path), folder)
        SeedResult(3).write(path, Demo(configs, tmp_path / 'out', preset='smoke').settings)
        assert SeedResult.read(path, self.demo(tmp_path / 'out').settings) == SeedResult(3)
        with open(configs / 'todsynth.py', 'a') as file:
            file.write('train_cfg = dict(max_iters=7)\n')
        assert SeedResult.read(path, Demo(configs, tmp_path / 'out', preset='smoke').settings) is None

    @pytest.mark.parametrize('arguments, name', [
        ('', 'demo'),
        ('--generator tisynth --preset standard', 'demo'),
        ('--generator todsynth', 'demo_todsynth'),
        ('--control triple', 'demo_todsynth'),
        ('--control siamese', 'demo_todsynth_siamese'),
        ('--generator tisynth --data some/set', 'demo_tisynth_set'),
        ('--data some/set --smoke --control adapter', 'demo_set_smoke_adapter'),
        ('--codec pca', 'demo'),
        ('--codec autoencoder', 'demo_autoencoder'),
        ('--trainings 3', 'demo_3_trainings'),
    ])
    def test_each_has_a_folder_of_its_own(self, arguments: str, name: str) -> None:
        tool = runpy.run_path(str(ROOT / 'projects' / 'demo'))
        assert tool['default_out_dir'](tool['parse_args'](arguments.split())) == Path('work_dirs') / name

    def test_the_tool_offers_what_the_network_has(self) -> None:
        parse_args = runpy.run_path(str(ROOT / 'projects' / 'demo'))['parse_args']
        assert [parse_args(['--control', control]).control for control in CONTROLS] == list(CONTROLS)
        assert [parse_args(['--codec', codec]).codec for codec in CODECS] == list(CODECS)


@pytest.mark.parametrize('generator', ['todsynth', 'tisynth'])
def test_the_codec_is_the_generator_s(generator: str, tmp_path: Path) -> None:
    demos = {codec: TestControl.demo(tmp_path, generator=generator, codec=codec) for codec in CODECS}
    configs = {codec: demo._generator_config(seed=0) for codec, demo in demos.items()}
    codecs = {codec: type(MODELS.build(cfg.model).latent_codec).__name__ for codec, cfg in configs.items()}
    assert codecs == dict(pca='PatchPCACodec', autoencoder='AutoencoderCodec')
    assert [hook['num_images'] for hook in configs['autoencoder'].custom_hooks if 'num_images' in hook] == [1024]
    assert demos['pca'].settings != demos['autoencoder'].settings


def test_a_seed_that_another_process_runs_is_left_alone(tmp_path: Path) -> None:
    demo, trained = TestControl.demo(tmp_path), tmp_path / 'seed_3' / 'generator' / 'iter_3.pth'
    trained.parent.mkdir(parents=True)
    trained.touch()
    holder = 'import sys; from pathlib import Path; from mmsynth.utils.files import FolderLock\n' \
        f'lock = FolderLock(Path({str(tmp_path)!r}), file=".seed_3.lock"); print("held", flush=True); sys.stdin.read()'
    with subprocess.Popen([sys.executable, '-c', holder], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == 'held\n'
        with Stages(1) as stages, pytest.raises(RuntimeError, match=f'being written by process {other.pid}'):
            demo.run(3, stages)
        other.stdin.close()
    assert trained.is_file()


def test_tables_give_mean_and_spread_and_paired_differences() -> None:
    def reading(value: float) -> Consistency:
        return Consistency(value, value, (value, ))

    results = [
        SeedResult(seed, miou=dict(real=40 + seed, plain=41.0, crfm=42.0, online=43.0),
                   reference_miou=dict(judge=50.0, critic=45.0),
                   consistency=dict(plain=dict(judge=reading(0.3), critic=reading(0.3)),
                                    crfm=dict(judge=reading(0.4 + seed / 100), critic=reading(0.5))))
        for seed in (0, 2)]
    plan = make_plan('todsynth', Path())
    assert segmentation_rows(results, plan)[0] == ['real only', '40.00', '42.00', '41.00 ± 1.41']
    assert segmentation_rows(results[:1], plan)[0] == ['real only', '40.00', '40.00 (one seed)']
    assert ['judge', 'CRFM - plain', '+10.00', '+12.00', '+11.00 ± 1.41'] in consistency_rows(results, plan)


# ------------------------------------------------------------------------------------------------------ with references


@pytest.fixture(scope='module')
def transfer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a smoke run that transfers labels to the target domain."""
    out = tmp_path_factory.mktemp('demo_tisynth') / 'out'
    run = subprocess.run(
        [sys.executable, str(ROOT / 'projects' / 'demo'), '--smoke', '--trainings', '2', '--out-dir', str(out)],
        capture_output=True, text=True, cwd=out.parent, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return out, run.stdout


class TestTransfer:

    def test_the_tables_are_about_the_target(self, transfer: tuple[Path, str]) -> None:
        out, output = transfer
        assert 'mIoU on held-out real images of the target domain (%)' in output
        for title in make_plan('tisynth', out / 'data').titles.values():
            assert any(title[:30] in line and any(map(str.isdigit, line)) for line in output.splitlines()), title
        assert 'Colours of synthetic images and of references' in output and 'moved' in output
        assert 'plain reference' not in output and (out / 'preview.png').is_file()

    def test_only_the_judge_sees_labels_of_the_target(self, transfer: tuple[Path, str]) -> None:
        out, _ = transfer
        configs = {stage: Config.fromfile(out / 'seed_0' / 'configs' / f'{stage}.py')
                   for stage in ('judge', 'generator', 'real', 'recolored', 'plain', 'crfm', 'online')}
        trained_on = {stage: str(cfg.train_dataloader) for stage, cfg in configs.items()}
        assert [stage for stage, text in trained_on.items() if 'ann_dir/target' in text] == ['judge']
        assert [stage for stage, text in trained_on.items() if 'img_dir/target' in text] == [
            'judge', 'generator', 'recolored', 'plain', 'crfm', 'online']  # by colours alone but for the judge
        validated = {cfg.val_dataloader.dataset.data_prefix.img_path for stage, cfg in configs.items()
                     if stage != 'generator'}
        assert validated == {'img_dir/target_val'}

    def test_the_rival_in_the_target_s_colours_guides(self, transfer: tuple[Path, str]) -> None:
        out, _ = transfer
        text = str(Config.fromfile(out / 'seed_0' / 'configs' / 'recolored.py').train_dataloader)
        assert text.count("'mmsynth.ColorTransfer'") == 1 and text.count('img_dir/target') == 1
        assert "'img_dir/target" not in text  # a folder of images, no part that is trained on
        critic = Config.fromfile(out / 'seed_0' / 'configs' / 'generator.py').synthesis.guidance.critic
        assert critic.checkpoint == str(out / 'seed_0' / 'recolored' / 'iter_3.pth')
        guidance = Pool.open(out / 'seed_0' / 'pool_crfm').settings['guidance']
        assert guidance['critic_weights_sha256'] == [file_hash(critic.checkpoint)]

    def test_references_are_swapped_and_nothing_else(self, transfer: tuple[Path, str]) -> None:
        out, _ = transfer
        pools = {row: Pool.open(out / 'seed_0' / f'pool_{row}') for row in ('source', 'plain', 'crfm')}
        parts = {row: {Path(record.reference).parent.name for record in pool.records} for row, pool in pools.items()}
        assert parts == dict(source={'train'}, plain={'target'}, crfm={'target'})
        seeds = {row: {record.id: record.seed for record in pool.records} for row, pool in pools.items()}
        assert seeds['plain'] == seeds['crfm'] and len(seeds['plain']) == 4 * len(seeds['source'])
        assert seeds['source'].items() < seeds['plain'].items()

    def test_the_online_row_generates_as_many_images_as_the_pool_holds(self, tmp_path: Path) -> None:
        demo = Demo(ROOT / 'projects' / 'demo' / 'configs', tmp_path, generator='tisynth', preset='smoke')
        cfg = demo._online_config(Path('generator.pth'), seed=0)
        hook = next(hook for hook in cfg.custom_hooks if hook.type == 'mmsynth.OnlineSynthesisHook')
        num_images = demo.preset.limit * demo.plan.rows['crfm'].num_per_mask
        assert hook.num_per_round == num_images // 6 and hook.max_samples >= num_images
        assert hook.critic == demo._generator_config(seed=0).synthesis.guidance.critic

    @pytest.mark.parametrize('row', ['recolored', 'plain', 'crfm', 'online'])
    def test_real_images_alone_take_the_target_s_colours(self, row: str, transfer: tuple[Path, str]) -> None:
        out, _ = transfer
        cfg = Config.fromfile(out / 'seed_0' / 'configs' / f'{row}.py')
        dataset = cfg.train_dataloader.dataset
        assert str(dataset).count("'mmsynth.ColorTransfer'") == 1
        if row == 'online':
            assert [step.type for step in dataset.synthetic_pipeline] == [
                step.type for step in dataset.dataset.pipeline if step.type != 'mmsynth.ColorTransfer']

    @pytest.mark.parametrize('row', ['real', 'recolored', 'plain', 'crfm', 'online'])
    def test_a_row_s_trainings_differ_by_their_seeds_alone(self, row: str, transfer: tuple[Path, str]) -> None:
        out, _ = transfer
        first, second = (Config.fromfile(out / 'seed_0' / 'configs' / f'{stage}.py') for stage in (row, f'{row}_2'))
        assert second.randomness.seed == first.randomness.seed + 1000
        assert second.train_dataloader.batch_size == first.train_dataloader.batch_size
        assert second.model == first.model and second.optim_wrapper == first.optim_wrapper
        pools = {str(cfg.train_dataloader.dataset.get('pool')) for cfg in (first, second)}
        assert len(pools) == (2 if row == 'online' else 1)

    def test_a_row_s_figure_is_the_mean_of_its_trainings(self, transfer: tuple[Path, str]) -> None:
        out, _ = transfer
        result = json.loads((out / 'seed_0' / 'result.json').read_text())['result']
        for row, miou in result['miou'].items():
            logs = [sorted((out / 'seed_0' / stage).glob('*/vis_data/scalars.json'))[-1] for stage in (row, f'{row}_2')]
            values = [json.loads(log.read_text().splitlines()[-1])['mIoU'] for log in logs]
            assert miou == pytest.approx(sum(values) / 2)

    def test_a_set_without_a_target_has_the_usual_rows(self, tmp_path: Path) -> None:
        plan = make_plan('tisynth', tmp_path)
        assert list(plan.rows) == ['plain', 'crfm'] and plan.validated == 'val' and not plan.transfers
        assert {row.references for row in plan.rows.values()} == {'train'}

    def test_a_result_is_read_back(self, tmp_path: Path) -> None:
        result = SeedResult(1, swap=ReferenceSwap((1.0, 2.0), (3.0, 4.0), 0.5))
        result.write(tmp_path / 'result.json', {})
        assert SeedResult.read(tmp_path / 'result.json', {}) == result
        rows = swap_rows([result])
        assert rows[1][:3] == ['source references', 'distance to target references', '2.00']
        assert rows[-1] == ['both', 'moved', '0.50', '0.50 (one seed)']
