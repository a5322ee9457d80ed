"""Faults of a worker process, done for real: killed, exiting, hanging, raising, orphaned."""
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from small_run import command
from torch import nn
from toy_generators import HERE

from mmsynth.online.request import SynthesisRequest, SynthesisResult
from mmsynth.online.worker import WorkerProcess
from mmsynth.online.worker_main import MARKER

pytestmark = pytest.mark.process

PATIENCE = 300.  # seconds; imports take long on a busy machine
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'handlers', [*logger.handlers, caplog.handler])
    monkeypatch.setattr(logger, 'level', logging.INFO)
    logger._cache.clear()
    return caplog


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts worker processes, and ends them after the test."""
    running = []

    def starter(function: str = 'build', arguments: dict | None = None, **options) -> WorkerProcess:
        worker = WorkerProcess(f'{HERE}:{function}', arguments or {}, tmp_path / 'staging',
                                  **dict(nice=0, backoff=0.1) | options)
        running.append(worker)
        worker.start()
        return worker

    yield starter
    for worker in running:
        worker.close()


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f'still waiting for {what}'
        time.sleep(0.01)


def next_result(worker: WorkerProcess) -> SynthesisResult:
    """What a training does at every iteration, until there is a result; no call may make it wait."""
    results: list[SynthesisResult] = []
    until(lambda: results.extend(worker.collect()) or results, 'a result')
    assert len(results) == 1
    return results[0]


def ask(worker: WorkerProcess, round: int, segmentor: nn.Module | None = None) -> SynthesisResult:
    """Wait until a request is taken, and for its result."""
    assert not worker.collect()
    until(lambda: worker.idle or worker.collect(), 'an idle process')
    worker.submit(SynthesisRequest(round, segmentor))
    return next_result(worker)


def exists(pid: int) -> bool:
    """Whether there is a process of this id, also a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pid: int) -> bool:
    """Whether another's process has ended; its new parent may not have asked yet."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z'
    except FileNotFoundError:
        return True


def test_one_process_serves_round_after_round(start, tmp_path, log) -> None:
    faults = {5: 'raise', 6: 'no json', 7: 'nan'}
    worker = start(arguments=dict(faults=faults), threads=1, nice=3)
    critic = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    critic(torch.randn(4, 2)).sum().backward()
    before = [value.clone() for value in critic.state_dict().values()]
    gradients, states = [p.grad.clone() for p in critic.parameters()], random_states()
    first = ask(worker, 4, critic)
    assert random_states() == states and critic.training
    assert all(torch.equal(a, b) for a, b in zip(before, critic.state_dict().values()))
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, critic.parameters()))

    assert first.error is None and [s.id for s in first.samples] == ['00000008', '00000009']
    assert [s.image[0, 0, 0] for s in first.samples] == [4, 5] and first.samples[0].mask[0, 0] == 1
    statistics = first.statistics
    assert statistics['weights'] == {name: value.sum().item() for name, value in critic.state_dict().items()}
    assert statistics['pid'] == worker.pid != os.getpid() and statistics['threads'] == 1
    assert statistics['nice'] == min(os.nice(0) + 3, 19)

    for round, message in ((5, 'ValueError: mask 5 cannot be loaded'), (6, 'got a ndarray')):
        result = ask(worker, round, critic)
        assert message in result.error and not result.samples
    assert ask(worker, 7).statistics['extra'] is None
    output = (tmp_path / 'staging' / 'process-1.log').read_text()
    assert 'output of a library' in output and 'Traceback' in output and 'cannot be\nloaded' in output
    assert statistics['pid'] == worker.pid and log.text.count('worker process') == 1  # one start, no fault

    folder = tmp_path / 'staging' / 'process-1'
    assert not list(folder.iterdir())  # no weights, no samples
    begin = time.monotonic()
    worker.close()
    assert time.monotonic() - begin < 5 and not exists(statistics['pid']) and not folder.exists()


def test_training_does_not_wait_and_a_killed_process_is_replaced(start, tmp_path, log) -> None:
    sign = tmp_path / 'hangs'
    worker = start(arguments=dict(faults={0: 'hang', 2: 'hang'}, sign=str(sign)), max_restarts=1)
    worker.submit(SynthesisRequest(0))
    until(lambda: worker.collect() or sign.exists(), 'the round to begin')
    begin = time.monotonic()
    for _ in range(1000):
        assert worker.collect() == [] and not worker.idle
    assert time.monotonic() - begin < 1000 * 0.01

    first = worker.pid
    os.kill(first, signal.SIGKILL)
    result = next_result(worker)
    assert result.round == 0 and 'was killed (SIGKILL)' in result.error and 'generating round 0' in result.error
    assert not exists(first) and not (tmp_path / 'staging' / 'process-1').exists()
    assert '(start again 1 of 1)' in log.text
    result = ask(worker, 1)
    assert result.error is None and len(result.samples) == 2 and worker.pid not in (None, first)

    sign.unlink()
    worker.submit(SynthesisRequest(2))
    until(sign.exists, 'the round to begin')
    second, begin = worker.pid, time.monotonic()
    worker.close()  # while it works
    assert time.monotonic() - begin < 5 and not exists(second)


def test_it_gives_up_after_failures_in_a_row(start, tmp_path, log) -> None:
    sign = tmp_path / 'hangs'
    worker = start(arguments=dict(faults={0: 'exit', 1: 'hang'}, sign=str(sign)), max_restarts=1)
    assert 'was killed (SIGKILL)' in ask(worker, 0).error  # 137, as containers report it
    until(lambda: worker.collect() or worker.idle, 'the second process')
    until(lambda: worker.collect() or worker._ready, 'the synthesizer')
    worker._timeout = 0.3
    result = ask(worker, 1)
    assert '`timeout` while it was generating round 1' in result.error
    assert sign.exists() and 'failed 2 times in a row' in worker.ended
    assert not worker.idle and worker.pid is None and worker.collect() == []
    assert [path.name for path in (tmp_path / 'staging').iterdir() if path.is_dir()] == []


def test_a_synthesizer_that_cannot_be_built_says_why(start) -> None:
    worker = start('no_checkpoint', dict(path='iter_1.pth'))
    pid = worker.pid
    until(lambda: worker.collect() or worker.ended, 'the end')
    assert 'cannot start: FileNotFoundError: checkpoint iter_1.pth does not exist' in worker.ended and not exists(pid)


@pytest.mark.slow
@pytest.mark.parametrize('how', ['killed', 'raising'])
def test_no_worker_outlives_the_training(start, tmp_path, how) -> None:
    staging, sign, pids = tmp_path / 'staging', tmp_path / 'sign', tmp_path / 'pids'
    script = tmp_path / 'train.py'
    script.write_text(f'''
import sys, time
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
if __name__ == '__main__':
    import multiprocessing
    from torch import nn
    from mmsynth.online.request import SynthesisRequest
    from mmsynth.online.worker import WorkerProcess
    worker = WorkerProcess('{HERE}:build', dict(faults={{0: 'hang'}}, sign={str(sign)!r}), {str(staging)!r}, nice=0)
    worker.start()
    loader = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600, ), daemon=True)
    loader.start()  # holds the pipe open, as a data loading worker does
    worker.submit(SynthesisRequest(0, nn.Linear(1, 1)))
    Path({str(pids)!r}).write_text(f'{{worker.pid}} {{loader.pid}}')
    Path({str(pids)!r} + '.done').touch()
    while {how == 'killed'} or not Path({str(sign)!r}).exists():
        time.sleep(0.01)
    raise RuntimeError('out of memory')
''')
    line, env = command(script, on_path=True)
    training = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(Path(f'{pids}.done').exists, 'the training to begin')
        worker, loader = map(int, pids.read_text().split())
        until(sign.exists, 'the round to begin')
        if how == 'killed':
            assert exists(worker)
            training.kill()
        training.wait(PATIENCE)
        begin = time.monotonic()
        until(lambda: gone(worker), 'the worker to end')
        assert time.monotonic() - begin < 30 and exists(loader) == (how == 'killed')
    finally:
        training.kill()
        training.wait()
        for pid in map(int, pids.read_text().split() if pids.exists() else ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    (staging / 'process-1' / 'round-0').mkdir()  # as if it had been at that
    worker = start('no_checkpoint', dict(path=''))
    assert sorted(path.name for path in staging.iterdir() if path.suffix != '.log') == [MARKER, 'process-1']
    assert not (staging / 'process-1' / 'round-0').exists()
    worker.close()


def random_states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
