"""Commands run in forks of the test's process, with a fault at a chosen one of their writes.

A fork costs no imports, and what a command does to the disk is counted, not timed: so a fault at write number n is the
same fault at every call. A write is anything that changes a folder: opening a file to write, a rename, a removal, a new
folder, a truncation, an fsync. The fault happens before the write that it is counted at.
"""
import gc
import importlib
import json
import os
import random
import resource
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONG = os.environ.get('MMSYNTH_FAULTS') == 'long'  # all faults; otherwise a few of each kind
PATIENCE = 300.  # seconds; a command takes less than one on a machine that is not busy


@dataclass(frozen=True)
class Write:
    """A change of the disk that is about to be made.

    Attributes:
        kind: 'open', 'fsync', or the name of the function.
        path: What is changed.
        appends: Whether a file is opened to write behind what it holds.
    """

    kind: str
    path: str
    appends: bool = False


Fault = Callable[[Write], None]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Its exit status, or the negative number of the signal that killed it.
        output: What it wrote to stdout and stderr.
        writes: Kinds and paths of its writes, if it has ended by itself.
    """

    status: int
    output: str
    writes: tuple[tuple[str, str], ...] = ()

    def check(self) -> 'Ended':
        """Itself, if the command has ended well."""
        assert self.status == 0, f'status {self.status}\n{self.output[-6000:]}'
        return self

    @property
    def error(self) -> str:
        """The last line of a traceback with what follows it: what a user reads."""
        assert self.status not in (0, -signal.SIGKILL), f'status {self.status}\n{self.output[-6000:]}'
        lines = self.output.rstrip().splitlines()
        last = max((number for number, line in enumerate(lines) if line.startswith('  ')), default=-1)
        return '\n'.join(lines[last + 1:]) or lines[-1]


class Fork:
    """A command that runs in a fork.

    Args:
        action: What it does.
        folder: The folder whose changes count as writes.
        scratch: A folder for its output.
        at: The write at which the fault happens, counted from 0; None for never.
        fault: What happens then.
    """

    def __init__(self, action: Callable[[], object], folder: Path, scratch: Path, *, at: int | None = None,
                 fault: Fault | None = None) -> None:
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        for name in ('output', 'found.json'):
            (scratch / name).unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run_and_exit(action, folder, scratch, at, fault)
        self._process = os.pidfd_open(self.pid)

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Wait for its end; one that takes longer is killed, and the test fails."""
        ready = select.select([self._process], [], [], seconds)[0]
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._process)
        output = (self._scratch / 'output').read_text(errors='replace')
        assert ready, f'it has not ended within {seconds} s\n{output[-6000:]}'
        file = self._scratch / 'found.json'
        if status < 0 or not file.is_file():  # cut, as its other files may be; or it ended itself, as one of a group
            return Ended(status, output)
        found = json.loads(file.read_text())
        for name in found['modules']:  # so that the next fork finds them imported
            with suppress(Exception):
                importlib.import_module(name)
        return Ended(status, output, tuple(map(tuple, found['writes'])))

    def wait_until_stopped(self, seconds: float = PATIENCE) -> None:
        """Wait until it has stopped itself (:func:`stop`)."""
        end = time.monotonic() + seconds
        while not os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG):
            assert time.monotonic() < end, (self._scratch / 'output').read_text(errors='replace')[-6000:]
            time.sleep(0.02)


def run(action: Callable[[], object], folder: Path, scratch: Path, **fault: Any) -> Ended:
    """Run a command in a fork to its end, see :class:`Fork`."""
    return Fork(action, folder, scratch, **fault).wait()


def script(path: Path, *arguments: object) -> Callable[[], None]:
    """Calling a script with arguments, as a command."""
    def action() -> None:
        sys.argv = [str(path), *map(str, arguments)]
        runpy.run_path(str(path), run_name='__main__')

    return action


def kill(write: Write) -> None:
    """The system ends the process, now."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop(write: Write) -> None:
    """The process sleeps until it is told to go on (SIGCONT)."""
    os.kill(os.getpid(), signal.SIGSTOP)


def tear(size: int) -> Fault:
    """Ends the process in the middle of the file that it opens, when so many bytes are written: a real short write."""
    def fault(write: Write) -> None:
        before = os.stat(write.path).st_size if write.appends else 0
        for stream in (1, 2):  # what is printed is not to be its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (before + size, before + size))

    return fault


def killed_at_seeded_points(reference: Ended, count: int, seed: int) -> Sequence[tuple[int, Fault, str]]:
    """Points and ways to end a command that made the writes of ``reference``; every second in the middle of one."""
    rng = random.Random(seed)
    points = rng.sample(range(len(reference.writes)), min(count, len(reference.writes)))
    faults = []
    for number, at in enumerate(points):
        kind, path = reference.writes[at]
        fault = tear(rng.choice([0, 1, 40])) if number % 2 and kind == 'open' else kill
        faults.append((at, fault, f'{"in" if fault is not kill else "before"} write {at}, {kind} {Path(path).name}'))
    return faults


def _run_and_exit(action: Callable[[], object], folder: Path, scratch: Path, at: int | None,
                  fault: Fault | None) -> None:
    status, writes, modules = 1, [], set(sys.modules)
    try:
        output = os.open(scratch / 'output', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (open(stream, 'w', buffering=1, closefd=False) for stream in (1, 2))
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        gc.freeze()
        import cv2
        cv2.setNumThreads(0)  # its threads did not come along
        os.environ['HF_DEACTIVATE_ASYNC_LOAD'] = '1'  # nor did torch's, which two threads would make anew
        _watch(str(folder), writes, at, fault)
        try:
            action()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        found = dict(writes=[(write.kind, write.path) for write in writes],
                     modules=[name for name in sys.modules if name not in modules and name != '__main__'])
        (scratch / 'found.json').write_text(json.dumps(found))
    finally:
        os._exit(status)


def _watch(folder: str, writes: list[Write], at: int | None, fault: Fault | None) -> None:
    """From now on count the writes in a folder, and let the fault happen at its number."""
    def note(kind: str, path: Any, appends: bool = False) -> None:
        path = os.fsdecode(os.readlink(f'/proc/self/fd/{path}') if isinstance(path, int) else path)
        if not os.path.abspath(path).startswith(folder):
            return
        write = Write(kind, path, appends)
        writes.append(write)
        if None not in (at, fault) and len(writes) == at + 1:
            fault(write)

    def audit(event: str, arguments: tuple) -> None:
        if event == 'open' and not isinstance(arguments[0], int):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR):
                note('open', arguments[0], bool(arguments[2] & os.O_APPEND) and os.path.exists(arguments[0]))
        elif event in ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate'):
            note(event.removeprefix('os.'), arguments[0])

    os.fsync = lambda descriptor: note('fsync', descriptor)  # what is written outlives a process, if not the machine
    sys.addaudithook(audit)
