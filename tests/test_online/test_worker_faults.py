"""What can happen to a painting process, done for real: killed, exiting, hanging, raising, orphaned."""
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

from mmsynth.online.orders import Answer, Order
from mmsynth.online.process import RefreshProcess
from mmsynth.online.staging import MARKER

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
def start(tmp_path: Path) -> Iterator[Callable[..., RefreshProcess]]:
    """Starts painting processes, and ends them after the test."""
    running = []

    def starter(function: str = 'build', settings: dict | None = None, **options) -> RefreshProcess:
        painting = RefreshProcess(f'{HERE}:{function}', settings or {}, tmp_path / 'staging',
                                  **dict(nice=0, backoff=0.1) | options)
        running.append(painting)
        painting.start()
        return painting

    yield starter
    for painting in running:
        painting.close()


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f'still waiting for {what}'
        time.sleep(0.01)


def next_answer(painting: RefreshProcess) -> Answer:
    """What a training does at every iteration, until there is an answer; no call may make it wait."""
    answers: list[Answer] = []
    until(lambda: answers.extend(painting.collect()) or answers, 'an answer')
    assert len(answers) == 1
    return answers[0]


def ask(painting: RefreshProcess, round: int, do: str = 'paint', segmentor: nn.Module | None = None,
        **values: str) -> Answer:
    """Wait until an order is taken, and for its answer."""
    assert not painting.collect()
    until(lambda: painting.idle or painting.collect(), 'an idle process')
    painting.submit(Order(round, dict(do=do, **values), segmentor))
    return next_answer(painting)


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


def test_one_process_paints_round_after_round(start, tmp_path, log) -> None:
    painting = start(settings=dict(count=3), threads=1, nice=3)
    critic = nn.Linear(2, 2)
    first = ask(painting, 4, 'tell', critic, word='ü')
    assert first.error is None and [s.id for s in first.samples] == ['00000012', '00000013', '00000014']
    assert [s.image[0, 0, 0] for s in first.samples] == [4, 5, 6] and first.samples[0].mask[0, 0] == 1
    facts = first.facts
    assert facts['weights'] == {name: value.sum().item() for name, value in critic.state_dict().items()}
    assert facts['pid'] == painting.pid != os.getpid() and facts['threads'] == 1
    assert facts['nice'] == min(os.nice(0) + 3, 19) and facts['values'] == dict(do='tell', word='ü')

    for trouble, message in (('raise', 'ValueError: mask 5 cannot be painted'),
                             ('nothing_json_has', 'got a ndarray')):
        answer = ask(painting, 5, trouble, critic)
        assert message in answer.error and not answer.samples
    assert ask(painting, 6, 'nan').facts['loss'] is None
    ask(painting, 7, 'say')
    output = (tmp_path / 'staging' / 'process-1.log').read_text()
    assert 'a word of a library' in output and 'Traceback' in output and 'cannot be\npainted' in output
    assert facts['pid'] == painting.pid and log.text.count('painting process') == 1  # one start, no fault

    folder = tmp_path / 'staging' / 'process-1'
    assert not list(folder.iterdir())  # no weights, no samples
    begin = time.monotonic()
    painting.close()
    assert time.monotonic() - begin < 5 and not exists(facts['pid']) and not folder.exists()


def test_training_does_not_wait_and_a_killed_process_is_replaced(start, tmp_path, log) -> None:
    painting = start(max_restarts=1)
    until(lambda: painting.collect() or painting._ready, 'the painter')
    sign = tmp_path / 'painting'
    painting.submit(Order(0, dict(do='wait', sign=str(sign))))
    until(sign.exists, 'the round to begin')
    begin = time.monotonic()
    for _ in range(1000):
        assert painting.collect() == [] and not painting.idle
    assert time.monotonic() - begin < 1000 * 0.01

    first = painting.pid
    os.kill(first, signal.SIGKILL)
    answer = next_answer(painting)
    assert answer.round == 0 and 'was killed (SIGKILL), as a system does that runs out of memory while it was ' \
        'painting round 0' in answer.error
    assert not exists(first) and not (tmp_path / 'staging' / 'process-1').exists()
    assert 'It is started again in 0.1 s (start again 1 of 1); training goes on.' in log.text
    answer = ask(painting, 1)
    assert answer.error is None and len(answer.samples) == 2 and painting.pid not in (None, first)

    painting.submit(Order(2, dict(do='wait', sign=str(tmp_path / 'again'))))
    until((tmp_path / 'again').exists, 'the round to begin')
    second, begin = painting.pid, time.monotonic()
    painting.close()  # while it works
    assert time.monotonic() - begin < 5 and not exists(second)


def test_it_gives_up_after_failures_in_a_row(start, tmp_path, log) -> None:
    painting = start(max_restarts=1)
    answer = ask(painting, 0, 'exit')
    assert 'ended with exit code 137' in answer.error or 'was killed (SIGKILL)' in answer.error
    until(lambda: painting.collect() or painting.idle, 'the second process')
    until(lambda: painting.collect() or painting._ready, 'the painter')
    painting._timeout = 0.3
    answer = ask(painting, 1, 'wait', sign=str(tmp_path / 'sign'))
    assert 'was killed because it took longer than `timeout` while it was painting round 1' in answer.error
    assert (tmp_path / 'sign').exists() and 'failed 2 times in a row' in painting.ended
    assert log.text.count('There will be no more new samples; training goes on without.') == 1
    assert not painting.idle and painting.pid is None and painting.collect() == []
    assert [path.name for path in (tmp_path / 'staging').iterdir() if path.is_dir()] == []


def test_a_bad_checkpoint_is_told_once_in_its_own_words(start, log) -> None:
    painting = start('no_checkpoint', dict(path='iter_1.pth'))
    pid = painting.pid
    until(lambda: painting.collect() or painting.ended, 'the end')
    message = 'cannot start: FileNotFoundError: checkpoint iter_1.pth does not exist; give a .pth or .safetensors file.'
    assert message in painting.ended and log.text.count(message) == 1 and not exists(pid)


@pytest.mark.parametrize('how', ['killed', 'raising'])
def test_no_painter_outlives_the_training(start, tmp_path, how) -> None:
    staging, sign, pids = tmp_path / 'staging', tmp_path / 'sign', tmp_path / 'pids'
    script = tmp_path / 'train.py'
    script.write_text(f'''
import sys, time
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
if __name__ == '__main__':
    import multiprocessing
    from torch import nn
    from mmsynth.online.orders import Order
    from mmsynth.online.process import RefreshProcess
    painting = RefreshProcess('{HERE}:build', {{}}, {str(staging)!r}, nice=0)
    painting.start()
    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600, ), daemon=True)
    worker.start()  # holds the pipe open, as a data loading worker does
    painting.submit(Order(0, dict(do='wait', sign={str(sign)!r}), nn.Linear(1, 1)))
    Path({str(pids)!r}).write_text(f'{{painting.pid}} {{worker.pid}}')
    Path({str(pids)!r} + '.done').touch()
    while {how == 'killed'} or not Path({str(sign)!r}).exists():
        time.sleep(0.01)
    raise RuntimeError('no room on the GPU')
''')
    line, env = command(script, on_path=True)
    training = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(Path(f'{pids}.done').exists, 'the training to begin')
        painter, worker = map(int, pids.read_text().split())
        until(sign.exists, 'the round to begin')
        if how == 'killed':
            assert exists(painter)
            training.kill()
        training.wait(PATIENCE)
        begin = time.monotonic()
        until(lambda: gone(painter), 'the painter to leave')
        assert time.monotonic() - begin < 30 and exists(worker) == (how == 'killed')
    finally:
        training.kill()
        training.wait()
        for pid in map(int, pids.read_text().split() if pids.exists() else ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    (staging / 'process-1' / 'round-0').mkdir()  # as if it had been at that
    painting = start('no_checkpoint', dict(path=''))
    assert sorted(path.name for path in staging.iterdir() if path.suffix != '.log') == [MARKER, 'process-1']
    assert not (staging / 'process-1' / 'round-0').exists()
    painting.close()


def test_randomness_and_the_critic_are_left_alone(start) -> None:
    critic = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    critic(torch.randn(4, 2)).sum().backward()
    before = [value.clone() for value in critic.state_dict().values()]
    gradients, states = [p.grad.clone() for p in critic.parameters()], random_states()
    painting = start()
    painting.submit(Order(0, segmentor=critic))
    painting.collect()
    painting.close()
    assert random_states() == states and critic.training
    assert all(torch.equal(a, b) for a, b in zip(before, critic.state_dict().values()))
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, critic.parameters()))


def random_states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
