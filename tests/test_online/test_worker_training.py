"""Trainings whose worker process fails: they go on, log it, and get new samples as soon as there are."""
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_run import NAMES, command

from mmsynth.engine.hooks.online_synthesis_hook import OnlineSynthesisHook
from mmsynth.pool import Pool
from mmsynth.pool.rounds import read_rounds

if TYPE_CHECKING:
    from small_run import SmallRun

PATIENCE = 300.
pytestmark = [pytest.mark.process, pytest.mark.slow]


class Watch(Hook):
    """Watches every iteration, and makes it as slow as that of a training of a real size.

    Args:
        kills: How often the worker process is killed, as soon as it has a request and there has been a round.
        rounds: After so many rounds of which samples were drawn, the training ends.
    """

    priority = 'LOWEST'

    def __init__(self, kills: int = 0, rounds: int | None = None) -> None:
        self.kills, self.rounds = kills, rounds
        self.killed: list[int] = []
        self.pids: set[int] = set()
        self.drawn: set[str] = set()
        self._end = time.monotonic() + PATIENCE

    def before_train(self, runner: Runner) -> None:
        self.hook = next(hook for hook in runner.hooks if isinstance(hook, OnlineSynthesisHook))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict) -> None:
        assert time.monotonic() < self._end, 'still no samples'
        self.drawn |= {sample.sample_id for sample in data_batch['data_samples'] if sample.origin == 'synthetic'}
        pid = self.hook._backend.pid
        if pid is not None:
            self.pids.add(pid)
        rounds = read_rounds(self.hook.pool)
        if (rounds and pid not in (None, *self.killed) and not self.hook._backend.idle
                and len(self.killed) < self.kills):
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)
        if self.rounds is not None and len([r for r in rounds if set(r.ids) & self.drawn]) >= self.rounds:
            runner.train_loop.stop_training = True
        time.sleep(0.02)


def training(run: 'SmallRun', folder: Path, watch: Watch, *, save: int | None = None, resume: bool = False,
             **online) -> Runner:
    """A training with half of each batch from a pool, which a worker process fills."""
    cfg = Config.fromfile(run.critic_config_file)
    real = cfg.train_dataloader.dataset.to_dict()
    meta_keys = ('img_path', 'ori_shape', 'img_shape', 'origin', 'sample_id', 'replaced')
    real['pipeline'] = [*real['pipeline'][:-1], dict(type='PackSegInputs', meta_keys=meta_keys)]
    cfg.merge_from_dict(dict(
        work_dir=str(folder / 'work'), experiment_name=f'{folder.name}_{resume}', resume=resume, log_level='INFO',
        train_cfg=dict(max_iters=10**6), default_hooks=dict(logger=dict(interval=10**6))))
    cfg.default_hooks.checkpoint = save and dict(type='CheckpointHook', by_epoch=False, interval=save)
    cfg.train_dataloader = dict(
        batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
        batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.5),
        dataset=dict(type='mmsynth.SyntheticAugmentDataset', dataset=real, pool=str(folder / 'pool')))
    cfg.custom_hooks = [dict(
        type='mmsynth.OnlineSynthesisHook', pool=str(folder / 'pool'), interval=5, num_per_round=len(NAMES),
        num_preview=0,
        generator=dict(config=str(run.config_file), checkpoint=str(run.generator)),
        guidance=dict(type='mmsynth.CRFM', steps=2, step_size=0.3)) | online]
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    return runner


def train_in_a_process(run: Path, folder: Path) -> subprocess.Popen:
    """The same training, started by a command as users do."""
    script = folder / 'train.py'
    script.write_text(f'''
import sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
if __name__ == '__main__':
    from small_run import SmallRun
    from test_worker_training import Watch, training
    run = Path({str(run)!r})
    run = SmallRun(run, run / 'generator' / 'iter_2.pth', run / 'critic' / 'iter_2.pth')
    training(run, Path({str(folder)!r}), Watch(), save=5, process=dict(nice=0)).train()
''')
    line, env = command(script, on_path=True)
    return subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def log_of(runner: Runner) -> str:
    return log_of_folder(Path(runner.work_dir))


def log_of_folder(work_dir: Path) -> str:
    [file] = work_dir.rglob('*.log')
    return file.read_text()


def test_a_killed_process_is_replaced_and_training_goes_on(small_run: 'SmallRun', tmp_path: Path) -> None:
    shutil.copytree(small_run.data, tmp_path / 'data')
    broken = tmp_path / 'data' / 'masks' / 'd.png'
    broken.write_bytes(broken.read_bytes()[:40])
    masks = dict(small_run.config().synthesis.dataset.to_dict(), data_root=str(tmp_path / 'data'))
    watch = Watch(kills=2, rounds=3)
    runner = training(small_run, tmp_path, watch, masks=masks, process=dict(backoff=0.1, max_restarts=2, nice=0))
    runner.train()

    log = log_of(runner)
    assert all(f'(start again {number} of 2)' in log for number in (1, 2))
    rounds = read_rounds(tmp_path / 'pool')
    lost = sorted({*range(rounds[-1].round)} - {r.round for r in rounds})
    # A process that is killed after it has answered has lost no round.
    assert len(lost) <= 2 and all(f'synthesis round {number} failed' in log for number in lost)
    assert all(r.dropped >= 1 for r in rounds)  # the broken mask
    assert '1 masks failed' in log and 'd.png' in log
    pool = Pool.open(tmp_path / 'pool')
    assert {record.id for record in pool.records} == {id for r in rounds for id in r.ids}
    assert len(watch.pids) == 3 and not any(alive(pid) for pid in watch.pids)
    assert not [path for path in (tmp_path / 'pool' / '.staging').iterdir() if path.is_dir()]


def test_a_worker_that_is_not_started_again_ends_the_training(small_run: 'SmallRun', tmp_path: Path) -> None:
    watch = Watch(kills=1)
    runner = training(small_run, tmp_path, watch, process=dict(max_restarts=0, nice=0))
    with pytest.raises(RuntimeError, match='failed 1 times in a row.*SIGKILL'):
        runner.train()
    assert len(read_rounds(tmp_path / 'pool')) >= 1 and not any(alive(pid) for pid in watch.pids)


def test_a_killed_training_is_resumed(small_run: 'SmallRun', tmp_path: Path) -> None:
    killed = train_in_a_process(small_run.folder, tmp_path)
    try:
        end = time.monotonic() + PATIENCE
        while len(read_rounds(tmp_path / 'pool')) < 2 or not (tmp_path / 'work' / 'last_checkpoint').exists():
            assert killed.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.wait()
    [worker] = re.findall(r'worker process (\d+) starts', log_of_folder(tmp_path / 'work'))
    watch = Watch(rounds=1)
    runner = training(small_run, tmp_path, watch, save=5, resume=True, process=dict(nice=0))
    runner.train()
    newest = max((tmp_path / 'work').rglob('*.log')).read_text()
    assert 'cleared what an earlier run left (process-1, process-1.log)' in newest
    assert runner.iter > 5 and watch.drawn and not alive(int(worker))
    rounds = read_rounds(tmp_path / 'pool')
    assert {record.id for record in Pool.open(tmp_path / 'pool').records} == {id for r in rounds for id in r.ids}


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended may stay a zombie until its new parent asks."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False
