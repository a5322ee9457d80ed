"""The training's handle of one painting process: start, messages, how it ended, end. Nothing here waits for it."""
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsynth.online.serving import Duty, serve
from mmsynth.online.staging import discard

_KILL_SECONDS = 5.
_KILLED = 128 + 9  # what a shell or container reports of a process that was killed


class Child:
    """A started painting process.

    Args:
        number: Which start it is, from 1; names its folder and log.
        factory, settings, threads, nice: See :class:`mmsynth.online.serving.Duty`.
        staging: The folder that holds its own.
    """

    def __init__(self, number: int, factory: str, settings: Mapping[str, Any], *, staging: Path, threads: int,
                 nice: int) -> None:
        self.folder, self.log = staging / f'process-{number}', staging / f'process-{number}.log'
        discard(self.folder)
        self.folder.mkdir()
        duty = Duty(factory, settings, self.folder, self.log, threads, nice, os.getpid())
        context = multiprocessing.get_context('spawn')  # fork would copy the training's locks and GPU state
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, duty), name='mmsynth-painting', daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand over a message; one to a process that is gone is dropped, :attr:`alive` tells."""
        try:
            self._pipe.send_bytes(json.dumps(message, allow_nan=False).encode('ascii'))
        except OSError:
            pass

    def messages(self) -> list[dict[str, Any]]:
        """What it said since the last call, also if it is gone by now."""
        found = []
        try:
            while self._pipe.poll():
                found.append(json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            pass
        return found

    def describe_end(self) -> str:
        """How a process that is not alive ended."""
        code = self._process.exitcode
        if code == -signal.SIGKILL or code == _KILLED:
            return 'was killed (SIGKILL), as a system does that runs out of memory'
        if code < 0:
            return f'was ended by {signal.Signals(-code).name}'
        return f'ended with exit code {code}'

    def end(self, grace: float = 0.) -> None:
        """Close the pipe, which an idle process ends by, and kill one that is still there after ``grace`` seconds."""
        self._pipe.close()
        self._process.join(grace)
        self._process.kill()
        self._process.join(_KILL_SECONDS)
        if self._process.exitcode is not None:  # else the system holds it, in a driver; it is reaped later
            self._process.close()
        discard(self.folder)
