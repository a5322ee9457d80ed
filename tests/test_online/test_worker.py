"""How a painting process is looked after: with a child that says what the test wants, and by a clock of the test's."""
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn
from toy_generators import HERE, build, sample

from mmsynth.online import process
from mmsynth.online.orders import Order
from mmsynth.online.process import WEIGHTS_FILE, RefreshProcess
from mmsynth.online.staging import stage_samples
from mmsynth.utils.checkpoint import read_checkpoint


class ScriptedChild:
    """In the place of a child: it lives, speaks and ends as the test says."""

    started: list['ScriptedChild']

    def __init__(self, number, factory, settings, *, staging, threads, nice) -> None:
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

    def answer(self, round: int, *samples, **facts) -> None:
        stage_samples(samples, self.folder / f'round-{round}')
        self.words.append(dict(kind='painted', round=round, folder=f'round-{round}', facts=facts))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, in seconds; it stands still unless the test moves it."""
    time = SimpleNamespace(now=100.)
    monkeypatch.setattr(process.time, 'monotonic', lambda: time.now)
    return time


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedChild]:
    monkeypatch.setattr(ScriptedChild, 'started', [], raising=False)
    monkeypatch.setattr(process, 'Child', ScriptedChild)
    return ScriptedChild.started


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'handlers', [*logger.handlers, caplog.handler])
    monkeypatch.setattr(logger, 'level', logging.INFO)
    logger._cache.clear()
    return caplog


def started(tmp_path: Path, **options) -> RefreshProcess:
    painting = RefreshProcess(f'{HERE}:build', {}, tmp_path / 'staging', **options)
    painting.start()
    return painting


def ready(tmp_path: Path, children: list[ScriptedChild], **options) -> RefreshProcess:
    painting = started(tmp_path, **options)
    children[0].words = [dict(kind='ready')]
    assert painting.collect() == []
    return painting


def test_a_round_goes_there_and_back(tmp_path, children, clock) -> None:
    painting = ready(tmp_path, children)
    critic = nn.Linear(3, 2)
    critic.again = critic.weight  # shared storage, which safetensors refuses
    painting.submit(Order(7, dict(losses=dict(road=0.5, rare=float('nan'))), critic))
    assert children[0].sent == [dict(round=7, values=dict(losses=dict(road=0.5, rare=None)), weights=WEIGHTS_FILE)]
    weights = read_checkpoint(children[0].folder / WEIGHTS_FILE)
    assert weights.keys() == critic.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in critic.state_dict().items())
    assert not painting.idle and painting.collect() == []
    clock.now += 12.5
    children[0].answer(7, sample('00000000', 3), sample('00000001', 4, weight=np.eye(4, 6, dtype=np.uint8)), dropped=1)
    [answer] = painting.collect()
    assert (answer.round, answer.error, answer.seconds, answer.facts) == (7, None, 12.5, dict(dropped=1))
    assert [s.id for s in answer.samples] == ['00000000', '00000001']
    assert np.array_equal(answer.samples[1].weight, np.eye(4, 6)) and answer.samples[0].weight is None
    assert not (children[0].folder / 'round-7').exists()
    assert painting.idle and painting.collect() == []


def test_an_order_may_be_given_before_the_painter_is_built(tmp_path, children, clock) -> None:
    painting = started(tmp_path, timeout=10, start_timeout=100)
    assert painting.idle
    painting.submit(Order(0))
    clock.now += 99  # building takes long: the order's time starts after it
    children[0].words = [dict(kind='ready')]
    assert painting.collect() == []
    clock.now += 9
    children[0].answer(0)
    [answer] = painting.collect()
    assert answer.error is None and answer.seconds == 108


def test_one_order_at_a_time(tmp_path, children) -> None:
    painting = ready(tmp_path, children)
    painting.submit(Order(0))
    with pytest.raises(RuntimeError, match='one order at a time; ask `idle`'):
        painting.submit(Order(1))


def test_a_dead_child_is_started_again_after_waits_that_double(tmp_path, children, clock, log) -> None:
    painting = ready(tmp_path, children, max_restarts=2, backoff=4)
    painting.submit(Order(0))
    children[0].alive = False
    [answer] = painting.collect()
    assert answer.round == 0 and 'was killed while it was painting round 0' in answer.error
    assert children[0].ended is not None and not painting.idle and painting.pid is None
    assert 'started again in 4 s (start again 1 of 2); training goes on' in log.text
    clock.now += 3.9
    assert painting.collect() == [] and len(children) == 1
    clock.now += 0.1
    assert painting.collect() == [] and len(children) == 2 and painting.idle

    children[1].alive = False
    assert painting.collect() == []  # nothing was lost
    assert 'was killed while it was starting' in log.text and 'in 8 s (start again 2 of 2)' in log.text
    clock.now += 8
    painting.collect()
    children[2].alive = False
    painting.collect()
    assert 'failed 3 times in a row; the last time it was killed' in painting.ended
    assert log.text.count('There will be no more new samples; training goes on without.') == 1
    clock.now += 1e6
    log.clear()
    assert painting.collect() == [] and not painting.idle and len(children) == 3 and not log.text


def test_success_ends_a_row_of_failures(tmp_path, children, clock) -> None:
    painting = ready(tmp_path, children, max_restarts=1, backoff=1)
    for number in range(5):
        child = children[-1]
        child.words = [dict(kind='ready')]
        painting.submit(Order(number))
        child.answer(number)
        assert painting.collect()[0].error is None
        child.alive = False
        painting.collect()
        clock.now += 1
        painting.collect()
    assert painting.ended is None and len(children) == 6


def test_the_wait_is_bounded(tmp_path, children, clock, log) -> None:
    painting = ready(tmp_path, children, max_restarts=50, backoff=5)
    for _ in range(50):
        children[-1].alive = False
        painting.collect()
        clock.now += process._MAX_WAIT
        painting.collect()
    assert len(children) == 51


def test_an_answer_given_before_death_counts(tmp_path, children) -> None:
    painting = ready(tmp_path, children)
    painting.submit(Order(0))
    children[0].answer(0, sample('a'))
    children[0].alive = False
    [answer] = painting.collect()
    assert answer.error is None and len(answer.samples) == 1 and not painting.idle


@pytest.mark.parametrize('is_ready, limit', [(True, '`timeout` while it was painting round 4'),
                                             (False, '`start_timeout` while it was starting')])
def test_a_child_that_takes_too_long_is_killed(tmp_path, children, clock, log, is_ready, limit) -> None:
    painting = started(tmp_path, timeout=10, start_timeout=20)
    if is_ready:
        children[0].words = [dict(kind='ready')]
        painting.collect()
    painting.submit(Order(4))
    clock.now += 10 if is_ready else 20
    assert painting.collect() == []
    clock.now += 0.1
    [answer] = painting.collect()
    assert limit in answer.error and children[0].ended == 0 and 'training goes on' in log.text


def test_an_idle_child_has_all_the_time(tmp_path, children, clock) -> None:
    painting = ready(tmp_path, children, timeout=10)
    clock.now += 1e6
    assert painting.collect() == [] and painting.idle


def test_a_round_that_fails_leaves_the_child_alone(tmp_path, children, log) -> None:
    painting = ready(tmp_path, children, max_restarts=1)
    for number in range(2):
        painting.submit(Order(number))
        children[0].words = [dict(kind='failed', round=number, error='ValueError: no')]
        [answer] = painting.collect()
        assert answer.error == 'ValueError: no' and (painting.ended is None) == painting.idle == (number == 0)
    assert len(children) == 1 and '2 rounds in a row were lost, the last because of ValueError: no' in log.text


@pytest.mark.parametrize('damage', [
    lambda file: file.unlink(),
    lambda file: file.write_bytes(file.read_bytes()[:100]),
    lambda file: file.write_bytes(b''),
], ids=['gone', 'truncated', 'empty'])
def test_samples_that_cannot_be_read_cost_the_round(tmp_path, children, damage) -> None:
    painting = ready(tmp_path, children)
    painting.submit(Order(0))
    children[0].answer(0, sample('a'))
    damage(children[0].folder / 'round-0' / '0.npz')
    [answer] = painting.collect()
    assert 'cannot be read back' in answer.error and painting.idle
    assert not (children[0].folder / 'round-0').exists()


def test_what_cannot_be_built_at_first_is_not_tried_again(tmp_path, children, clock, log) -> None:
    painting = started(tmp_path)
    painting.submit(Order(0))
    children[0].words = [dict(kind='broken', error='FileNotFoundError: checkpoint x.pth')]
    [answer] = painting.collect()
    assert 'cannot start: FileNotFoundError: checkpoint x.pth' in answer.error == painting.ended
    clock.now += 1e6
    assert painting.collect() == [] and len(children) == 1
    assert log.text.count('checkpoint x.pth') == 1


def test_what_could_be_built_once_is_tried_again(tmp_path, children, clock, log) -> None:
    painting = ready(tmp_path, children, backoff=1)
    children[0].alive = False
    painting.collect()
    clock.now += 1
    painting.collect()
    children[1].words = [dict(kind='broken', error='OutOfMemoryError: 8 GiB')]
    painting.collect()
    assert painting.ended is None and 'could not start: OutOfMemoryError' in log.text
    clock.now += 2
    painting.collect()
    assert len(children) == 3


def test_a_system_without_room_for_a_process(tmp_path, children, clock, log, monkeypatch) -> None:
    painting = ready(tmp_path, children, backoff=1)
    children[0].alive = False
    painting.collect()
    monkeypatch.setattr(process, 'Child', lambda *args, **options: (_ for _ in ()).throw(BlockingIOError('no room')))
    clock.now += 1
    assert painting.collect() == [] and 'could not be started: no room' in log.text and painting.ended is None


def test_weights_that_cannot_be_written_cost_the_round(tmp_path, children, monkeypatch) -> None:
    painting = ready(tmp_path, children)

    def full(*args: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(process, 'stage_weights', full)
    painting.submit(Order(3, segmentor=nn.Linear(1, 1)))
    [answer] = painting.collect()
    assert answer.round == 3 and 'No space left' in answer.error and painting.idle and not children[0].sent


def test_close_waits_only_for_an_idle_child(tmp_path, children) -> None:
    painting = ready(tmp_path, children)
    painting.submit(Order(0))
    painting.close()
    painting.close()
    assert children[0].ended == 0 and not painting.idle and painting.collect() == []
    RefreshProcess('a:b', {}, tmp_path / 'other').close()  # never started


@pytest.mark.parametrize('options, message', [
    (dict(factory='builder'), "`factory` must be 'module:function', got 'builder'"),
    (dict(factory=build), "`factory` must be 'module:function'"),
    (dict(timeout=0), '`timeout` must be a number of seconds above 0, got 0'),
    (dict(backoff=float('nan')), '`backoff` must be a number of seconds above 0, got nan'),
    (dict(threads=0, nice=-1), '`threads` must be an integer of at least 1, got 0; `nice` must be an integer'),
    (dict(max_restarts=1.5), '`max_restarts` must be an integer that is not negative, got 1.5'),
])
def test_options_are_checked_before_anything_starts(tmp_path, children, options, message) -> None:
    with pytest.raises(ValueError) as error:
        RefreshProcess(**dict(factory='a:b', settings={}, staging=tmp_path / 'staging') | options)
    assert message in str(error.value) and not children and not (tmp_path / 'staging').exists()
