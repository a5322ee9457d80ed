"""How a worker process is supervised: with a scripted process, and by a clock of the test's."""
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn
from toy_generators import HERE, build, sample

from mmsynth.online import worker as module
from mmsynth.online.request import SynthesisRequest
from mmsynth.online.worker import WEIGHTS_FILE, WorkerProcess
from mmsynth.online.worker_main import stage_samples
from mmsynth.utils.checkpoint import read_checkpoint


class ScriptedProcess:
    """In the place of a process: it lives, sends and ends as the test says."""

    started: list['ScriptedProcess']

    def __init__(self, staging, number, **options) -> None:
        self.pid, self.folder, self.log = number, staging / f'process-{number}', staging / 'log'
        self.folder.mkdir()
        self.alive, self.ended, self.sent, self.words = True, None, [], []
        self.started.append(self)

    def send(self, message) -> None:
        self.sent.append(message)

    def messages(self):
        words, self.words = self.words, []
        return words

    def describe_end(self) -> str:
        return 'was killed'

    def end(self, grace: float = 0.) -> None:
        self.alive, self.ended = False, grace

    def finish(self, round: int, *samples, **statistics) -> None:
        stage_samples(samples, self.folder / f'round-{round}')
        self.words.append(dict(kind='done', round=round, folder=f'round-{round}', statistics=statistics))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, in seconds; it stands still unless the test moves it."""
    time = SimpleNamespace(now=100.)
    monkeypatch.setattr(module.time, 'monotonic', lambda: time.now)
    return time


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedProcess]:
    monkeypatch.setattr(ScriptedProcess, 'started', [], raising=False)
    monkeypatch.setattr(module, '_Process', ScriptedProcess)
    return ScriptedProcess.started


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'handlers', [*logger.handlers, caplog.handler])
    monkeypatch.setattr(logger, 'level', logging.INFO)
    logger._cache.clear()
    return caplog


def started(tmp_path: Path, **options) -> WorkerProcess:
    worker = WorkerProcess(f'{HERE}:build', {}, tmp_path / 'staging', **options)
    worker.start()
    return worker


def ready(tmp_path: Path, processes: list[ScriptedProcess], **options) -> WorkerProcess:
    worker = started(tmp_path, **options)
    processes[0].words = [dict(kind='ready')]
    assert worker.collect() == []
    return worker


def test_a_round_goes_there_and_back(tmp_path, processes, clock) -> None:
    worker = ready(tmp_path, processes)
    critic = nn.Linear(3, 2)
    critic.again = critic.weight  # shared storage, which safetensors refuses
    worker.submit(SynthesisRequest(7, critic))
    assert processes[0].sent == [dict(round=7, weights=WEIGHTS_FILE)]
    weights = read_checkpoint(processes[0].folder / WEIGHTS_FILE)
    assert weights.keys() == critic.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in critic.state_dict().items())
    assert not worker.idle and worker.collect() == []
    clock.now += 12.5
    processes[0].finish(7, sample('00000000', 3), sample('00000001', 4, weight=np.eye(4, 6, dtype=np.uint8)), dropped=1)
    [result] = worker.collect()
    assert (result.round, result.error, result.seconds, result.statistics) == (7, None, 12.5, dict(dropped=1))
    assert [s.id for s in result.samples] == ['00000000', '00000001']
    assert np.array_equal(result.samples[1].weight, np.eye(4, 6)) and result.samples[0].weight is None
    assert not (processes[0].folder / 'round-7').exists()
    assert worker.idle and worker.collect() == []


def test_a_request_may_come_before_the_synthesizer_is_built(tmp_path, processes, clock) -> None:
    worker = started(tmp_path, timeout=10, start_timeout=100)
    assert worker.idle
    worker.submit(SynthesisRequest(0))
    clock.now += 99  # building takes long: the round's time starts after it
    processes[0].words = [dict(kind='ready')]
    assert worker.collect() == []
    clock.now += 9
    processes[0].finish(0)
    [result] = worker.collect()
    assert result.error is None and result.seconds == 108


def test_one_request_at_a_time(tmp_path, processes) -> None:
    worker = ready(tmp_path, processes)
    worker.submit(SynthesisRequest(0))
    with pytest.raises(RuntimeError, match='one request at a time; ask `idle`'):
        worker.submit(SynthesisRequest(1))


def test_a_dead_process_is_started_again_after_waits_that_double(tmp_path, processes, clock, log) -> None:
    worker = ready(tmp_path, processes, max_restarts=2, backoff=4)
    worker.submit(SynthesisRequest(0))
    processes[0].alive = False
    [result] = worker.collect()
    assert result.round == 0 and 'was killed while it was generating round 0' in result.error
    assert processes[0].ended is not None and not worker.idle and worker.pid is None
    assert 'started again in 4 s (start again 1 of 2)' in log.text
    clock.now += 3.9
    assert worker.collect() == [] and len(processes) == 1
    clock.now += 0.1
    assert worker.collect() == [] and len(processes) == 2 and worker.idle

    processes[1].alive = False
    assert worker.collect() == []  # nothing was lost
    assert 'was killed while it was starting' in log.text and 'in 8 s (start again 2 of 2)' in log.text
    clock.now += 8
    worker.collect()
    processes[2].alive = False
    worker.collect()
    assert 'failed 3 times in a row; the last time it was killed' in worker.ended
    clock.now += 1e6
    log.clear()
    assert worker.collect() == [] and not worker.idle and len(processes) == 3 and not log.text


def test_success_ends_a_row_of_failures(tmp_path, processes, clock) -> None:
    worker = ready(tmp_path, processes, max_restarts=1, backoff=1)
    for number in range(5):
        process = processes[-1]
        process.words = [dict(kind='ready')]
        worker.submit(SynthesisRequest(number))
        process.finish(number)
        assert worker.collect()[0].error is None
        process.alive = False
        worker.collect()
        clock.now += 1
        worker.collect()
    assert worker.ended is None and len(processes) == 6


def test_the_wait_is_bounded(tmp_path, processes, clock, log) -> None:
    worker = ready(tmp_path, processes, max_restarts=50, backoff=5)
    for _ in range(50):
        processes[-1].alive = False
        worker.collect()
        clock.now += module._MAX_WAIT
        worker.collect()
    assert len(processes) == 51


def test_a_result_given_before_death_counts(tmp_path, processes) -> None:
    worker = ready(tmp_path, processes)
    worker.submit(SynthesisRequest(0))
    processes[0].finish(0, sample('a'))
    processes[0].alive = False
    [result] = worker.collect()
    assert result.error is None and len(result.samples) == 1 and not worker.idle


@pytest.mark.parametrize('is_ready, limit', [(True, '`timeout` while it was generating round 4'),
                                             (False, '`start_timeout` while it was starting')])
def test_a_process_that_takes_too_long_is_killed(tmp_path, processes, clock, log, is_ready, limit) -> None:
    worker = started(tmp_path, timeout=10, start_timeout=20)
    if is_ready:
        processes[0].words = [dict(kind='ready')]
        worker.collect()
    worker.submit(SynthesisRequest(4))
    clock.now += 10 if is_ready else 20
    assert worker.collect() == []
    clock.now += 0.1
    [result] = worker.collect()
    assert limit in result.error and processes[0].ended == 0


def test_an_idle_process_has_all_the_time(tmp_path, processes, clock) -> None:
    worker = ready(tmp_path, processes, timeout=10)
    clock.now += 1e6
    assert worker.collect() == [] and worker.idle


def test_a_round_that_raises_leaves_the_process_alone(tmp_path, processes) -> None:
    worker = ready(tmp_path, processes, max_restarts=0)
    for number in range(2):
        worker.submit(SynthesisRequest(number))
        processes[0].words = [dict(kind='failed', round=number, error='ValueError: no')]
        [result] = worker.collect()
        assert 'ValueError: no' in result.error and worker.ended is None and worker.idle
    assert len(processes) == 1


@pytest.mark.parametrize('damage', [
    lambda file: file.unlink(),
    lambda file: file.write_bytes(file.read_bytes()[:100]),
    lambda file: file.write_bytes(b''),
], ids=['gone', 'truncated', 'empty'])
def test_samples_that_cannot_be_read_cost_the_round(tmp_path, processes, damage) -> None:
    worker = ready(tmp_path, processes)
    worker.submit(SynthesisRequest(0))
    processes[0].finish(0, sample('a'))
    damage(processes[0].folder / 'round-0' / '0.npz')
    [result] = worker.collect()
    assert 'cannot be read back' in result.error and worker.idle
    assert not (processes[0].folder / 'round-0').exists()


def test_what_cannot_be_built_at_first_is_not_tried_again(tmp_path, processes, clock, log) -> None:
    worker = started(tmp_path)
    worker.submit(SynthesisRequest(0))
    processes[0].words = [dict(kind='broken', error='FileNotFoundError: checkpoint x.pth')]
    [result] = worker.collect()
    assert 'cannot start: FileNotFoundError: checkpoint x.pth' in result.error == worker.ended
    clock.now += 1e6
    assert worker.collect() == [] and len(processes) == 1


def test_what_could_be_built_once_is_tried_again(tmp_path, processes, clock, log) -> None:
    worker = ready(tmp_path, processes, backoff=1)
    processes[0].alive = False
    worker.collect()
    clock.now += 1
    worker.collect()
    processes[1].words = [dict(kind='broken', error='OutOfMemoryError: 8 GiB')]
    worker.collect()
    assert worker.ended is None and 'could not start: OutOfMemoryError' in log.text
    clock.now += 2
    worker.collect()
    assert len(processes) == 3


def test_a_system_without_room_for_a_process(tmp_path, processes, clock, log, monkeypatch) -> None:
    worker = ready(tmp_path, processes, backoff=1)
    processes[0].alive = False
    worker.collect()
    monkeypatch.setattr(module, '_Process', lambda *args, **options: (_ for _ in ()).throw(BlockingIOError('no room')))
    clock.now += 1
    assert worker.collect() == [] and 'could not be started: no room' in log.text and worker.ended is None


def test_weights_that_cannot_be_written_cost_the_round(tmp_path, processes, monkeypatch) -> None:
    worker = ready(tmp_path, processes)

    def full(*args: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module, 'stage_weights', full)
    worker.submit(SynthesisRequest(3, segmentor=nn.Linear(1, 1)))
    [result] = worker.collect()
    assert result.round == 3 and 'No space left' in result.error and worker.idle and not processes[0].sent


def test_close_waits_only_for_an_idle_process(tmp_path, processes) -> None:
    worker = ready(tmp_path, processes)
    worker.submit(SynthesisRequest(0))
    worker.close()
    worker.close()
    assert processes[0].ended == 0 and not worker.idle and worker.collect() == []
    WorkerProcess('a:b', {}, tmp_path / 'other').close()  # never started


@pytest.mark.parametrize('options, names', [
    (dict(factory='builder'), ['`factory`', "'builder'"]),
    (dict(factory=build), ['`factory`']),
    (dict(timeout=0), ['`timeout`', 'got 0']),
    (dict(backoff=float('nan')), ['`backoff`', 'got nan']),
    (dict(threads=0, nice=-1), ['`threads`', '`nice`']),
    (dict(max_restarts=1.5), ['`max_restarts`', 'got 1.5']),
])
def test_options_are_checked_before_anything_starts(tmp_path, processes, options, names) -> None:
    with pytest.raises(ValueError) as error:
        WorkerProcess(**dict(factory='a:b', arguments={}, staging=tmp_path / 'staging') | options)
    assert all(name in str(error.value) for name in names)
    assert not processes and not (tmp_path / 'staging').exists()
