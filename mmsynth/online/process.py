"""Painting in a process of its own, which training never waits for, and which may fail without ending the training."""
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmsynth.online.child import Child
from mmsynth.online.orders import Answer, Order, describe
from mmsynth.online.staging import check_staging, discard, open_staging, read_samples, stage_weights
from mmsynth.pool.manifest import plain_json

WEIGHTS_FILE = 'critic.safetensors'
_MAX_WAIT = 300.
_GRACE = 2.
_SECONDS, _COUNT = (Real, 1e-3, 'a number of seconds above 0'), (Integral, 0, 'an integer that is not negative')
_RULES = dict(timeout=_SECONDS, start_timeout=_SECONDS, backoff=_SECONDS, max_restarts=_COUNT, nice=_COUNT,
              threads=(Integral, 1, 'an integer of at least 1'))


@dataclass(frozen=True)
class _Pending:
    """The order that the process has."""

    round: int
    since: float


class RefreshProcess:
    """Carries out orders in a child process; see :mod:`mmsynth.online.orders` for how it is driven.

    The child builds its painter once. It holds one order at a time; its samples come back through files. When
    it dies, hangs or raises, that round is lost and answered with an error. A dead or hanging child is started again,
    after a wait that doubles with every failure in a row. After more than ``max_restarts`` of them, or if the very
    first painter cannot be built, there will be no more samples; training goes on without.

    What a round holds does not depend on the process, except for the rounding of sums by its number of threads. When
    it is there does: runs with it cannot be reproduced exactly.

    The child is started as Python's ``spawn`` does, so a training script needs its ``if __name__ == '__main__'``.

    Args:
        factory: 'module:function'; called in the child with ``settings``, it returns the painter.
        settings: Keyword arguments of the function, plain and picklable; the device is among them.
        staging: A folder for nothing else, cleared at start, below which files are handed over.
        timeout: Seconds that an order may take; what takes longer hangs.
        start_timeout: Seconds that building the painter may take.
        max_restarts: Failures in a row after which the child is started again; 0 to give up at the first.
        backoff: Seconds until the first start again.
        threads: Of torch in the child; few, so that training keeps its cores.
        nice: How much the child steps back for other processes, in [0, 19].

    Raises:
        ValueError: If an option breaks its rule, or ``staging`` holds other files.
    """

    def __init__(self,
                 factory: str,
                 settings: Mapping[str, Any],
                 staging: str | Path,
                 *,
                 timeout: float = 7200.,
                 start_timeout: float = 1800.,
                 max_restarts: int = 3,
                 backoff: float = 5.,
                 threads: int = 1,
                 nice: int = 10) -> None:
        _check_options(factory, timeout=timeout, start_timeout=start_timeout, max_restarts=max_restarts,
                       backoff=backoff, threads=threads, nice=nice)
        check_staging(staging)
        self._start = dict(factory=factory, settings=dict(settings), staging=Path(staging).absolute(),
                           threads=threads, nice=nice)
        self._timeout, self._start_timeout = timeout, start_timeout
        self._max_restarts, self._backoff = max_restarts, backoff
        self._child: Child | None = None
        self._pending: _Pending | None = None
        self._answers: list[Answer] = []
        self._ended: str | None = None
        self._starts = self._failures = 0
        self._ready = self._ever_ready = False
        self._due = math.inf  # when the child must have spoken, or without a child, when to start one

    @property
    def idle(self) -> bool:
        """Whether an order can be submitted now: there is a child, and it has none."""
        return self._child is not None and self._pending is None

    @property
    def ended(self) -> str | None:
        """Why no order will be taken any more; None while there is hope."""
        return self._ended

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Clear the staging folder and start the child; it builds its painter while training goes on.

        Raises:
            ValueError: If ``staging`` holds files that are none of a staging folder.
        """
        left = open_staging(self._start['staging'])
        if left:
            print_log(f'{self._start["staging"]}: cleared what an earlier run left ({", ".join(left)}).',
                      logger='current')
        self._spawn()

    def submit(self, order: Order) -> None:
        """Hand over an order, with a copy of the critic's weights.

        Raises:
            RuntimeError: If it is not :attr:`idle`.
        """
        if not self.idle:
            raise RuntimeError('the painting process takes one order at a time; ask `idle` first.')
        name = None if order.segmentor is None else WEIGHTS_FILE
        try:
            if name is not None:
                stage_weights(order.segmentor, self._child.folder / name)
        except OSError as error:
            self._answers.append(Answer(order.round, error=f"the critic's weights could not be handed over: {error}"))
            return
        self._pending = _Pending(order.round, time.monotonic())
        if self._ready:
            self._due = time.monotonic() + self._timeout
        self._child.send(dict(round=order.round, values=plain_json(order.values), weights=name))

    def collect(self) -> list[Answer]:
        """The answers since the last call. Also looks after the child, so call it at every iteration."""
        if self._child is not None:
            self._look_after()
        elif self._ended is None and time.monotonic() >= self._due:
            self._spawn()
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """End the child within a few seconds; what it was painting is lost. Safe to call twice."""
        if self._child is not None:
            self._child.end(_GRACE if self._ready and self._pending is None else 0.)
        self._child = self._pending = None
        self._ended = self._ended or 'it was closed'
        self._answers.clear()

    def _spawn(self) -> None:
        self._starts += 1
        self._ready, self._due = False, time.monotonic() + self._start_timeout
        try:
            self._child = Child(self._starts, **self._start)
        except OSError as error:  # no memory, too many processes
            self._fail(f'could not be started: {error}')
            return
        print_log(f'painting process {self._child.pid} starts; it writes to {self._child.log}', logger='current')

    def _look_after(self) -> None:
        """Hear what the child has to say, and find out whether it is well."""
        child, alive = self._child, self._child.alive  # asked first: what it said before its end is not lost
        for message in child.messages():
            self._hear(**message)
            if self._child is None:
                return
        if not alive:
            self._fail(f'{child.describe_end()}{self._while_doing()}; its output is in {child.log}')
        elif time.monotonic() > self._due:
            limit = '`timeout`' if self._ready else '`start_timeout`'
            self._fail(f'was killed because it took longer than {limit}{self._while_doing()}; its output is in '
                       f'{child.log}')

    def _hear(self, kind: str, **message: Any) -> None:
        if kind == 'ready':
            self._ready = self._ever_ready = True
            self._due = math.inf if self._pending is None else time.monotonic() + self._timeout
        elif kind == 'broken' and not self._ever_ready:
            self._give_up(f'the painting process cannot start: {message["error"]} (more in {self._child.log})')
        elif kind == 'broken':
            self._fail(f'could not start: {message["error"]}')
        elif kind == 'painted':
            self._take(**message)
        else:
            self._refuse(message['error'])

    def _take(self, round: int, folder: str, facts: dict[str, Any]) -> None:
        """Read the samples of the order, and have their files removed."""
        path = self._child.folder / folder
        try:
            answer = Answer(round, read_samples(path), facts, seconds=time.monotonic() - self._pending.since)
        except Exception as error:  # a damaged file: its readers raise whatever they stumble over
            self._refuse(f'its samples cannot be read back: {describe(error)}')
            return
        finally:
            discard(path)
        self._answers.append(answer)
        self._failures, self._pending, self._due = 0, None, math.inf

    def _refuse(self, reason: str) -> None:
        """The order is lost, the child is well."""
        self._lose(reason)
        self._failures += 1
        if self._failures > self._max_restarts:
            self._give_up(f'{self._failures} rounds in a row were lost, the last because of {reason}')

    def _fail(self, reason: str) -> None:
        """The order is lost and so is the child."""
        self._lose(f'the painting process {reason}')
        self._failures += 1
        if self._failures > self._max_restarts:
            self._give_up(f'the painting process failed {self._failures} times in a row; the last time it {reason}')
            return
        wait = min(self._backoff * 2**min(self._failures - 1, 30), _MAX_WAIT)
        self._drop_child()
        self._due = time.monotonic() + wait
        print_log(f'the painting process {reason}. It is started again in {wait:g} s (start again {self._failures} of '
                  f'{self._max_restarts}); training goes on.', logger='current', level=logging.WARNING)

    def _give_up(self, reason: str) -> None:
        self._lose(reason)
        self._ended = reason
        self._drop_child()
        print_log(f'{reason}. There will be no more new samples; training goes on without.', logger='current',
                  level=logging.WARNING)

    def _lose(self, reason: str) -> None:
        if self._pending is not None:
            since = time.monotonic() - self._pending.since
            self._answers.append(Answer(self._pending.round, error=reason, seconds=since))
            discard(self._child.folder / WEIGHTS_FILE)
        self._pending, self._due = None, math.inf

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None

    def _while_doing(self) -> str:
        if not self._ready:
            return ' while it was starting'
        return '' if self._pending is None else f' while it was painting round {self._pending.round}'


def _check_options(factory: str, **numbers: float) -> None:
    problems = []
    if not isinstance(factory, str) or not all(factory.partition(':')):
        problems.append(f"`factory` must be 'module:function', got {factory!r:.80}")
    for name, value in numbers.items():
        kind, lowest, rule = _RULES[name]
        if isinstance(value, bool) or not isinstance(value, kind) or not value >= lowest:
            problems.append(f'`{name}` must be {rule}, got {value!r:.80}')
    if problems:
        raise ValueError('; '.join(problems))
