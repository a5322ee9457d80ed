"""tools/*.sh: two processes on the CPU, by torchrun, and by a srun and sbatch that run what they are given here."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ROOT, SmallRun, command

from mmsynth.pool import Pool
from mmsynth.utils import read_checkpoint

pytestmark = pytest.mark.process
TOOLS = ROOT / 'tools'
SCRIPTS = sorted(TOOLS.glob('*.sh'))
CONFIG = """
_base_ = ['{base}']
custom_imports = dict(imports=['mmsynth', 'gloo_group'], allow_failed_imports=False)
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, find_unused_parameters=True)
train_dataloader = dict(batch_size=2)
"""
TEST = """
test_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
    type='BaseSegDataset', data_root='{data}', data_prefix=dict(img_path='images', seg_map_path='masks'),
    metainfo={{{{_base_.metainfo}}}}, img_suffix='.png',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
log_level = 'INFO'
"""
# Each writes its options, a line each, to the file SEEN, and runs its command here.
SRUN = """#!{python}
import os, subprocess, sys
first = next(i for i, word in enumerate(sys.argv) if word == sys.executable)
open(os.environ['SEEN'], 'w').write('\\n'.join(sys.argv[1:first]))
count = next(word.split('=')[1] for word in sys.argv if word.startswith('--ntasks='))
tasks = [subprocess.Popen(sys.argv[first:], env=os.environ | dict(
    SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NTASKS=count, SLURM_NODELIST='here'))
    for rank in range(int(count))]
sys.exit(max(task.wait() for task in tasks))
"""
SBATCH = """#!{python}
import os, subprocess, sys
open(os.environ['SEEN'], 'w').write('\\n'.join(sys.argv[1:-2]))
assert sys.argv[-2] == '--wrap'
first, last = [word.split('=')[1] for word in sys.argv if word.startswith('--array=')][-1].split('-')
for task in range(int(first), int(last) + 1):
    subprocess.run(['sh', '-c', sys.argv[-1]], check=True, env=os.environ | dict(SLURM_ARRAY_TASK_ID=str(task)))
"""


def launch(script: str, *arguments: object, folder: Path, status: int = 0, **environment: str) -> str:
    """Run a script to its end and return what it wrote; it may only succeed."""
    _, env = command(on_path=True)
    env |= dict(PATH=f'{folder}:{env["PATH"]}', PYTHON=sys.executable, PYTHONPATH=f'{ROOT}:{ROOT / "tests"}',
                PORT=str(20000 + os.getpid() % 10000), SEEN=str(folder / 'seen.txt'),
                MMSYNTH_TEST_STORE=str(folder / 'store'), **environment)
    result = subprocess.run([TOOLS / script, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True,
                            timeout=300)
    output = result.stdout + result.stderr
    assert result.returncode == status, output[-4000:]
    return output


def write_config(folder: Path, base: Path, more: str = '') -> Path:
    (folder / 'config.py').write_text(CONFIG.format(base=base) + more)
    return folder / 'config.py'


def put_on_path(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text.format(python=sys.executable))
    (folder / name).chmod(0o755)



@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_it_says_what_it_takes(script: Path, tmp_path: Path) -> None:
    assert f'tools/{script.name} ' in launch(script.name, folder=tmp_path, status=2)


def test_two_processes_train(small_run: SmallRun, tmp_path: Path) -> None:
    config = write_config(tmp_path, small_run.config_file)
    launch('dist_train.sh', config, 2, '--work-dir', tmp_path / 'a b', '--cfg-options', 'train_cfg.max_iters=2',
           'log_level=INFO', folder=tmp_path)
    assert 'pytorch' in next((tmp_path / 'a b').glob('*/*.log')).read_text()
    trained = read_checkpoint(tmp_path / 'a b' / 'iter_2.pth')
    assert trained.keys() == read_checkpoint(small_run.generator).keys()  # no wrapper's prefix


def test_two_processes_test(small_run: SmallRun, tmp_path: Path) -> None:
    config = write_config(tmp_path, small_run.critic_config_file, TEST.format(data=small_run.data))
    output = launch('dist_test.sh', config, small_run.critic, 2, '--work-dir', tmp_path / 'out', folder=tmp_path)
    assert '[2/2]' in output and 'mIoU: ' in output  # four images, two for each process


def test_two_processes_generate_one_pool(small_run: SmallRun, tmp_path: Path) -> None:
    output = launch(
        'dist_synthesize.sh', small_run.config_file, small_run.generator, 2, '--out-dir', tmp_path / 'pool',
        '--guidance', 'none', '--batch-size', '1', folder=tmp_path)
    assert output.count('2 images generated') == 2  # by each
    assert len(Pool.open(tmp_path / 'pool')) == 4 and (tmp_path / 'pool' / 'report.html').is_file()


def test_slurm_trains(small_run: SmallRun, tmp_path: Path) -> None:
    put_on_path(tmp_path, 'srun', SRUN)
    config = write_config(tmp_path, small_run.config_file)
    launch('slurm_train.sh', 'gpus', 'my job', config, '--work-dir', tmp_path / 'out', '--cfg-options',
           'train_cfg.max_iters=1', folder=tmp_path, GPUS='2', GPUS_PER_NODE='2', SRUN_ARGS='--time=9 --exclusive')
    assert (tmp_path / 'seen.txt').read_text().splitlines() == [
        '-p', 'gpus', '--job-name=my job', '--gres=gpu:2', '--ntasks=2', '--ntasks-per-node=2', '--cpus-per-task=5',
        '--kill-on-bad-exit=1', '--time=9', '--exclusive']
    assert (tmp_path / 'out' / 'iter_1.pth').is_file()


def test_an_array_of_slurm_generates_one_pool(small_run: SmallRun, tmp_path: Path) -> None:
    put_on_path(tmp_path, 'sbatch', SBATCH)
    options = ['slurm_synthesize.sh', 'gpus', 'pool', small_run.config_file, small_run.generator, '--out-dir', 'a pool',
               '--guidance', 'none', '--batch-size', '1']  # shards take batches
    launch(*options, folder=tmp_path, SHARDS='2', SBATCH_ARGS='--array=0-0')  # one of the two alone
    assert not (tmp_path / 'a pool' / 'report.html').exists()
    launch(*options, folder=tmp_path, SHARDS='2', SBATCH_ARGS='--time=9')
    assert (tmp_path / 'seen.txt').read_text().splitlines() == [
        '-p', 'gpus', '--job-name=pool', '--gres=gpu:1', '--cpus-per-task=5', '--array=0-1', '--time=9']
    assert len(Pool.open(tmp_path / 'a pool')) == 4 and (tmp_path / 'a pool' / 'report.html').is_file()
