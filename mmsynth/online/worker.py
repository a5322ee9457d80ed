"""Synthesis in a worker process, which training never waits for.

It is a :class:`multiprocessing.Process` and not a ``ProcessPoolExecutor``: that one does not say how a worker ended,
cannot kill one that hangs (before Python 3.14), makes the interpreter wait for it at exit, and unpickles its results.
"""
import json
import logging
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmsynth.online.request import SynthesisRequest, SynthesisResult, describe
from mmsynth.online.worker_main import (
    WorkerSettings,
    check_staging,
    discard,
    open_staging,
    read_samples,
    serve,
    stage_weights,
)

WEIGHTS_FILE = 'critic.safetensors'
_MAX_WAIT = 300.
_GRACE = 2.
_KILL_SECONDS = 5.
_KILLED = 128 + 9  # what a shell or container reports of a process that was killed
_SECONDS, _COUNT = (Real, 1e-3, 'a number of seconds above 0'), (Integral, 0, 'an integer that is not negative')
_RULES = dict(timeout=_SECONDS, start_timeout=_SECONDS, backoff=_SECONDS, max_restarts=_COUNT, nice=_COUNT,
              threads=(Integral, 1, 'an integer of at least 1'))


class WorkerProcess:
    """Serve requests by a worker process; see :mod:`mmsynth.online.request` for how it is driven.

    The process builds its synthesizer once. It has one request at a time; its samples come back through files. When it
    dies, hangs or raises, that round is lost and its result is an error. A dead or hanging process is started again,
    after a wait that doubles with every failure in a row. After more than ``max_restarts`` of them, or if the very
    first synthesizer cannot be built, :attr:`ended` says why there will be no more samples.

    What a round holds does not depend on the process, except for the rounding of sums by its number of threads. When
    it is finished does: runs with it cannot be reproduced exactly.

    The process is started as Python's ``spawn`` does, so a training script needs its ``if __name__ == '__main__'``.

    Args:
        factory: 'module:function'; called in the process with ``arguments``, it returns the synthesizer.
        arguments: Keyword arguments of the function, plain and picklable; the device is among them.
        staging: A folder for nothing else, cleared at start, below which files are handed over.
        timeout: Seconds that a round may take; what takes longer hangs.
        start_timeout: Seconds that building the synthesizer may take.
        max_restarts: Failures in a row after which the process is started again; 0 to give up at the first.
        backoff: Seconds until the first start again.
        threads: Of torch in the process; few, so that training keeps its cores.
        nice: Niceness of the process above the training's, in [0, 19].

    Attributes:
        ended: Why no request will be taken any more; None until then.

    Raises:
        ValueError: If an option breaks its rule, or ``staging`` holds other files.
    """

    def __init__(self,
                 factory: str,
                 arguments: Mapping[str, Any],
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
        self.ended: str | None = None
        self._staging = Path(staging).absolute()
        self._start = dict(factory=factory, arguments=dict(arguments), threads=threads, nice=nice)
        self._timeout, self._start_timeout = timeout, start_timeout
        self._max_restarts, self._backoff = max_restarts, backoff
        self._process: _Process | None = None
        self._pending: tuple[int, float] | None = None  # the round that the process has, and since when
        self._results: list[SynthesisResult] = []
        self._starts = self._failures = 0
        self._ready = self._ever_ready = False
        self._due = math.inf  # when the process must have answered, or without one, when to start it

    @property
    def idle(self) -> bool:
        """Whether a request can be submitted now: there is a process, and it has none."""
        return self._process is not None and self._pending is None

    @property
    def pid(self) -> int | None:
        """The process id; None while there is no process."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Clear the staging folder and start the process; it builds its synthesizer while training goes on.

        Raises:
            ValueError: If ``staging`` holds files that are none of a staging folder.
        """
        left = open_staging(self._staging)
        if left:
            print_log(f'{self._staging}: cleared what an earlier run left ({", ".join(left)}).', logger='current')
        self._spawn()

    def submit(self, request: SynthesisRequest) -> None:
        """Hand over a request, with a copy of the segmentor's weights.

        Raises:
            RuntimeError: If it is not :attr:`idle`.
        """
        process = self._process
        if process is None or not self.idle:
            raise RuntimeError('the worker process takes one request at a time; ask `idle` first.')
        try:
            if request.segmentor is not None:
                stage_weights(request.segmentor, process.folder / WEIGHTS_FILE)
        except OSError as error:
            reason = f"the segmentor's weights could not be handed over: {error}"
            self._results.append(SynthesisResult(request.round, error=reason))
            return
        self._pending = request.round, time.monotonic()
        if self._ready:
            self._due = time.monotonic() + self._timeout
        process.send(dict(round=request.round, weights=None if request.segmentor is None else WEIGHTS_FILE))

    def collect(self) -> list[SynthesisResult]:
        """Return the results since the last call. It also supervises the process, so call it at every iteration."""
        if self._process is not None:
            self._supervise(self._process)
        elif self.ended is None and time.monotonic() >= self._due:
            self._spawn()
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """End the process within a few seconds; the round that it has is lost. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.end(_GRACE if self._ready and self._pending is None else 0.)
        self._pending = None
        self.ended = self.ended or 'it was closed'
        self._results.clear()

    def _spawn(self) -> None:
        self._starts += 1
        self._ready, self._due = False, time.monotonic() + self._start_timeout
        try:
            self._process = _Process(self._staging, self._starts, **self._start)
        except OSError as error:  # no memory, too many processes
            self._fail(f'could not be started: {error}')
            return
        print_log(f'worker process {self._process.pid} starts; it writes to {self._process.log}', logger='current')

    def _supervise(self, process: '_Process') -> None:
        """Handle the messages of the process, and find out whether it died or hangs."""
        alive = process.alive  # asked first: what it sent before its end is not lost
        for message in process.messages():
            self._handle(process, **message)
            if self._process is None:
                return
        doing = ' while it was starting' if not self._ready else ''
        if self._ready and self._pending is not None:
            doing = f' while it was generating round {self._pending[0]}'
        if not alive:
            self._fail(f'{process.describe_end()}{doing}; its output is in {process.log}')
        elif time.monotonic() > self._due:
            limit = '`timeout`' if self._ready else '`start_timeout`'
            self._fail(f'was killed because it took longer than {limit}{doing}; its output is in {process.log}')

    def _handle(self, process: '_Process', kind: str, **message: Any) -> None:
        if kind == 'ready':
            self._ready = self._ever_ready = True
            self._due = math.inf if self._pending is None else time.monotonic() + self._timeout
        elif kind == 'broken' and not self._ever_ready:
            self._give_up(f'the worker process cannot start: {message["error"]} (more in {process.log})')
        elif kind == 'broken':
            self._fail(f'could not start: {message["error"]}')
        elif kind == 'failed':
            self._lose_round(f'{message["error"]} (more in {process.log})')
        else:
            folder = process.folder / message['folder']
            try:
                assert self._pending is not None
                samples, seconds = read_samples(folder), time.monotonic() - self._pending[1]
                self._results.append(SynthesisResult(message['round'], samples, message['statistics'], seconds=seconds))
                self._failures, self._pending, self._due = 0, None, math.inf
            except Exception as error:  # a damaged file: its readers raise whatever they stumble over
                self._lose_round(f'its samples cannot be read back: {describe(error)}')
            finally:
                discard(folder)

    def _lose_round(self, reason: str) -> None:
        """Turn the request that the process has, if any, into an error."""
        if self._pending is not None:
            number, since = self._pending
            self._results.append(SynthesisResult(number, error=reason, seconds=time.monotonic() - since))
            assert self._process is not None
            discard(self._process.folder / WEIGHTS_FILE)
        self._pending, self._due = None, math.inf

    def _fail(self, reason: str) -> None:
        """End the process and have it started again, or give up."""
        self._failures += 1
        if self._failures > self._max_restarts:
            self._give_up(f'the worker process failed {self._failures} times in a row; the last time it {reason}')
            return
        self._lose_round(f'the worker process {reason}')
        self._end_process()
        wait = min(self._backoff * 2**min(self._failures - 1, 30), _MAX_WAIT)
        self._due = time.monotonic() + wait
        print_log(f'the worker process {reason}. It is started again in {wait:g} s (start again {self._failures} of '
                  f'{self._max_restarts}).', logger='current', level=logging.WARNING)

    def _give_up(self, reason: str) -> None:
        self._lose_round(reason)
        self._end_process()
        self.ended = reason

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.end()
        self._process = None


class _Process:
    """The training's end of a started worker process. Nothing here waits for it, but for :meth:`end`.

    Args:
        staging: The folder that holds its own.
        number: Which start it is, from 1; names its folder and log.
        options: Of :class:`WorkerSettings`.
    """

    def __init__(self, staging: Path, number: int, **options: Any) -> None:
        self.folder, self.log = staging / f'process-{number}', staging / f'process-{number}.log'
        discard(self.folder)
        self.folder.mkdir()
        settings = WorkerSettings(folder=self.folder, log=self.log, parent=os.getpid(), **options)
        context = multiprocessing.get_context('spawn')  # fork would copy the training's locks and GPU state
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, settings), name='mmsynth-worker', daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; one to a process that is gone is dropped, :attr:`alive` tells."""
        try:
            self._pipe.send_bytes(json.dumps(message).encode('ascii'))
        except OSError:
            pass

    def messages(self) -> list[dict[str, Any]]:
        """Return its messages since the last call, also if it is gone by now."""
        found = []
        try:
            while self._pipe.poll():
                found.append(json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            pass
        return found

    def describe_end(self) -> str:
        """Describe how a process that is not alive ended."""
        code = self._process.exitcode
        assert code is not None
        if code in (-signal.SIGKILL, _KILLED):
            return 'was killed (SIGKILL), as a system does that runs out of memory'
        return f'was ended by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'

    def end(self, grace: float = 0.) -> None:
        """Close the pipe, which an idle process ends by, and kill one that is still there after ``grace`` seconds."""
        self._pipe.close()
        self._process.join(grace)
        self._process.kill()
        self._process.join(_KILL_SECONDS)
        if self._process.exitcode is not None:  # else the system holds it, in a driver; it is reaped later
            self._process.close()
        discard(self.folder)


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
