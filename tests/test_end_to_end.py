"""From a config to a segmentor trained on synthetic images, by the commands that a user types.

Training is mmseg's own tools/train.py; the last step runs where mmsynth cannot be imported.
"""
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from small_run import NAMES, ROOT, SmallRun, command, run, train

from mmsynth.apis import synthesize
from mmsynth.host import host_script
from mmsynth.pool import Pool
from mmsynth.synthesis.build import build_dataset, load_config
from mmsynth.utils import read_checkpoint

pytestmark = pytest.mark.process

INTERVAL = 30  # iterations between checkpoints of the training that is killed

MIXED = """
_base_ = '{critic}'
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            _base_.real,
            dict(
                type='BaseSegDataset',
                data_root='{pool}',
                metainfo=_base_.metainfo,
                data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir'),
                img_suffix='.png',
                pipeline=_base_.train_pipeline),
        ]))
"""

WITHOUT_MMSYNTH = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'mmsynth':
            raise ModuleNotFoundError('mmsynth is not installed')

sys.meta_path.insert(0, Blocker())
try:
    import mmsynth
except ModuleNotFoundError:
    print('mmsynth cannot be imported')
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
assert not [name for name in sys.modules if name.split('.')[0] == 'mmsynth']
print('training done')
"""


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the four steps, which follow each other."""
    return tmp_path_factory.mktemp('end_to_end')


@pytest.fixture(scope='module')
def train_script() -> Path:
    """mmseg's tools/train.py, as our tools/train.py finds it."""
    script = host_script('train.py')
    assert 'mmsynth' not in script.read_text()
    return script


@pytest.fixture(scope='module')
def generator(small_run: SmallRun, work_dir: Path, train_script: Path) -> Path:
    """The checkpoint of a training that was killed after a while and resumed."""
    folder = work_dir / 'generator'
    arguments = [train_script, small_run.config_file, '--work-dir', folder]
    line, env = command(*arguments, '--cfg-options', 'train_cfg.max_iters=1000000',
                        f'default_hooks.checkpoint.interval={INTERVAL}', on_path=True)
    with (work_dir / 'log').open('w') as log:
        process = subprocess.Popen(line, env=env, cwd=work_dir, stdout=log, stderr=log)
        try:
            killed_at = wait_for_checkpoint(process, folder)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL, (work_dir / 'log').read_text()[-3000:]
    run(*arguments, '--resume', '--cfg-options', f'train_cfg.max_iters={killed_at + 2}', cwd=work_dir, on_path=True)
    return folder / f'iter_{killed_at + 2}.pth'


@pytest.fixture(scope='module')
def pool(small_run: SmallRun, generator: Path, work_dir: Path) -> Pool:
    run(ROOT / 'tools' / 'synthesize.py', small_run.config_file, generator, '--out-dir', 'pool', cwd=work_dir)
    return Pool.open(work_dir / 'pool')


def wait_for_checkpoint(process: subprocess.Popen, folder: Path, seconds: float = 240) -> int:
    """Wait for the first checkpoint of a running training; its iteration."""
    pointer, end = folder / 'last_checkpoint', time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if pointer.is_file() and pointer.read_text().endswith('.pth'):
            return int(pointer.read_text().rsplit('iter_')[-1].removesuffix('.pth'))
        time.sleep(0.005)
    raise AssertionError(f'no checkpoint within {seconds} s; the training ended with {process.poll()}')


def test_a_killed_training_resumes(generator: Path) -> None:
    before, after = (torch.load(path, weights_only=False, map_location='cpu')
                     for path in (generator.parent / f'iter_{INTERVAL}.pth', generator))
    done = after['message_hub']['runtime_info']['iter'] + 1
    assert generator.name == f'iter_{done}.pth' and done >= INTERVAL + 2
    steps = {int(state['step']) for state in after['optimizer']['state'].values()}
    assert max(steps) == done  # the optimizer went on from its own state
    codec = [key for key in after['state_dict'] if key.startswith('latent_codec.')]
    assert codec and bool(after['state_dict']['latent_codec.fitted'])
    assert all(torch.equal(before['state_dict'][key], after['state_dict'][key]) for key in codec)
    assert any(not torch.equal(before['state_dict'][key], value) for key, value in after['state_dict'].items())


def test_the_resumed_generator_generates_a_pool(pool: Pool) -> None:
    assert [record.id for record in pool.records] == [f'masks/{name}' for name in NAMES]
    assert all(record.guidance['name'] == 'CRFM' for record in pool.records)


def test_a_segmentor_trains_on_real_and_synthetic_without_mmsynth(small_run: SmallRun, pool: Pool, work_dir: Path,
                                                                  train_script: Path) -> None:
    config = work_dir / 'mixed.py'
    config.write_text(MIXED.format(critic=small_run.critic_config_file.as_posix(), pool=pool.root.as_posix()))
    cfg = Config.fromfile(config)
    assert len(build_dataset(cfg.train_dataloader.dataset)) == 2 * len(NAMES)
    output = run('-c', WITHOUT_MMSYNTH, train_script, config, '--work-dir', work_dir / 'mixed', cwd=work_dir)
    assert 'mmsynth cannot be imported' in output and 'training done' in output
    trained, start = read_checkpoint(work_dir / 'mixed' / 'iter_2.pth'), read_checkpoint(small_run.critic)
    assert trained.keys() == start.keys() and all(value.isfinite().all() for value in trained.values())


def test_training_by_lora(small_run: SmallRun, train_script: Path, tmp_path: Path) -> None:
    """A trained generator is adapted for two iterations, by a config that inherits its own."""
    config = tmp_path / 'lora.py'
    config.write_text(f"_base_ = '{small_run.config_file.as_posix()}'\nload_from = '{small_run.generator.as_posix()}'\n"
                      "model = dict(trainable=dict(image='lora', mask='lora', text='frozen'), lora=dict(rank=2))\n")
    run(train_script, config, '--work-dir', tmp_path / 'work', cwd=tmp_path, on_path=True)
    run(ROOT / 'tools' / 'synthesize.py', config, tmp_path / 'work' / 'iter_2.pth', '--out-dir', 'pool', '--limit', '1',
        '--guidance', 'none', cwd=tmp_path)
    assert len(Pool.open(tmp_path / 'pool').records) == 1
    adapted, start = read_checkpoint(tmp_path / 'work' / 'iter_2.pth'), read_checkpoint(small_run.generator)
    assert all(torch.equal(adapted[key], value) for key, value in start.items() if key.startswith('network.'))
    updates = {key: value for key, value in adapted.items() if 'to_v.lora_B' in key}
    assert len(updates) == 2 and all(value.any() for value in updates.values())


@pytest.mark.parametrize('control', ['siamese', 'adapter'])
def test_training_by_another_control_scheme(small_run: SmallRun, train_script: Path, tmp_path: Path,
                                            control: str) -> None:
    """One option changes the scheme ('triple' is the one that all else here runs); its checkpoint generates, guided."""
    option = f'model.network.control={control}'
    run(train_script, small_run.config_file, '--work-dir', tmp_path / 'work', '--cfg-options', option, cwd=tmp_path,
        on_path=True)
    cfg = load_config(small_run.config_file, {'model.network.control': control})
    pool = synthesize(cfg, tmp_path / 'work' / 'iter_2.pth', tmp_path / 'pool', limit=1)
    assert len(pool) == 1 and pool.records[0].guidance['name'] == 'CRFM'
    with pytest.raises(ValueError, match='does not fit TODSynth'):
        synthesize(load_config(small_run.config_file), tmp_path / 'work' / 'iter_2.pth', tmp_path / 'triple', limit=1)


# ---- settings of the training


def losses(runner: Runner) -> list[float]:
    return [float(value) for value in runner.message_hub.get_scalar('train/loss').data[0]]


def test_training_in_bfloat16(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's wrapper wants a GPU to be there; what it does works on a CPU as well."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    mixed = {'optim_wrapper': dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)}
    full, half = (losses(train(small_run.config_file, tmp_path / name, changes))
                  for name, changes in (('full', {}), ('half', mixed)))
    assert half == pytest.approx(full, rel=0.05)
    assert half[-1] != full[-1]  # after one update the network's output is no longer zero


@pytest.mark.parametrize('key', [
    'model.num_stepz',
    'model.network.mask_chanels',
    'model.network.trunk.num_layer',
    'model.latent_codec.patchsize',
    'model.label_codec.classes',
    'model.text_encoder.embed_dim',
    'model.scheduler.shft',
    'custom_hooks.0.num_image',
    'train_dataloader.dataset.an_file',
    'train_dataloader.dataset.pipeline.1.num_class',
])
def test_a_misspelt_key_is_named(small_run: SmallRun, tmp_path: Path, key: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{key.rsplit('.', maxsplit=1)[-1]}'"):
        train(small_run.config_file, tmp_path, {key: 1})
    assert not list(tmp_path.glob('iter_*.pth'))
