"""Two writers at once: the second is told, and the first goes on. And clocks that jump change nothing."""
import os
import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from commands import NAMES, difference
from forks import LONG, Fork, run, stop

if TYPE_CHECKING:
    from commands import Command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'train'] if LONG else [
    'encode_prompts', 'online mixing'])
def test_the_second_writer_is_told(name: str, commands: dict[str, 'Command'], unbroken: Callable,
                                   survived: Callable) -> None:
    """The first stands still in the middle of its work, as one on a machine that is busy."""
    command, (reference, expected) = commands[name], unbroken(name)
    command.prepare()
    # before the pool of a training is closed, which is before its end
    first = Fork(command.action, command.root, command.scratch / 'first', at=len(reference.writes) // 2, fault=stop)
    try:
        first.wait_until_stopped()
        second = command.call()
    finally:
        os.kill(first.pid, signal.SIGCONT)
        ended = first.wait()
    assert second.status == 1 and f'is being written by process {first.pid}' in second.error
    ended.check()
    if name != 'online mixing':  # whose second training has written a log beside the first's
        assert not difference(command.result(command.root), expected)
    survived('two writers')


@pytest.mark.parametrize('name', NAMES if LONG else ['synthesize'])
def test_a_clock_that_jumps(name: str, commands: dict[str, 'Command'], unbroken: Callable, survived: Callable) -> None:
    """Back and forth by up to a day at every look; also the times of files, as of a clock that was set."""
    command, (reference, expected) = commands[name], unbroken(name)

    def action() -> None:
        rng, real = random.Random(0), time.time
        time.time = lambda: real() + rng.uniform(-86_400, 86_400)
        time.time_ns = lambda: int(time.time() * 1e9)
        command.action()

    command.prepare()
    ended = run(action, command.root, command.scratch, at=len(reference.writes) // 2, fault=_kill_in_the_past)
    assert ended.status == -signal.SIGKILL
    run(action, command.root, command.scratch).check()
    assert not difference(command.result(command.root), expected)
    survived('clock jumps')


def _kill_in_the_past(write: object) -> None:
    """All that was written is of last year when the next run looks at it."""
    folder = os.path.dirname(write.path)
    for name in os.listdir(folder):
        os.utime(os.path.join(folder, name), (1e9, 1e9))
    os.kill(os.getpid(), signal.SIGKILL)
