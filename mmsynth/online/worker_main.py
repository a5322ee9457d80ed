"""What runs in a worker process, and the files that it and the training hand to each other.

The process builds a synthesizer once, then serves requests until the training ends. Messages are JSON objects, one at a
time, through the pipe that the process was started with; nothing that the training reads is unpickled::

    in    {"round": 3, "weights": "critic.safetensors" | null}
    out   {"kind": "ready"}                                  the synthesizer is built
          {"kind": "broken", "error": "…"}                   it could not be; the process ends
          {"kind": "done", "round": 3, "folder": "round-3", "statistics": {…}}
          {"kind": "failed", "round": 3, "error": "…"}       it raised; the process goes on

What the synthesizer needs is imported only when it is built: a process starts in the time that torch takes.

File names are below the process's own folder::

    staging/
      .mmsynth-staging       says that the folder may be cleared
      process-1.log          what the first process wrote
      process-1/             its own folder, gone when it ends
        critic.safetensors   weights on their way to it
        round-0/             a generated round on its way back
          samples.json       ids and details
          0.npz, 1.npz, …    arrays

Nothing in it outlives a run: a message names a file only when the file is complete, and what a killed run left is
cleared by the next one. It belongs to the one writer of a pool.
"""
import io
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mmsynth.online.request import SynthesisRequest, Synthesizer, describe
from mmsynth.online.sample import Sample
from mmsynth.pool.manifest import plain_json
from mmsynth.utils.checkpoint import read_checkpoint
from mmsynth.utils.files import TEMPORARY_PREFIX

MARKER = '.mmsynth-staging'
SAMPLES_FILE = 'samples.json'
_ARRAYS = ('image', 'mask', 'filtered', 'weight')
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process is started with; it must be picklable.

    Attributes:
        factory: 'module:function' that builds the synthesizer.
        arguments: The function's keyword arguments.
        folder: The process's own folder.
        log: The file that takes its output.
        threads: Of torch.
        nice: Its niceness above the training's.
        parent: The process id of the training.
    """

    factory: str
    arguments: Mapping[str, Any]
    folder: Path
    log: Path
    threads: int
    nice: int
    parent: int


def serve(pipe: Connection, settings: WorkerSettings) -> None:
    """Run as the main function of the process, until the pipe is closed or the training has ended, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; training decides when to end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the interpreter of the training sends when it ends
    threading.Thread(target=_exit_with, args=(settings.parent, ), daemon=True).start()
    _redirect_output(settings.log)
    if hasattr(os, 'nice'):
        os.nice(settings.nice)
    torch.set_num_threads(settings.threads)

    def send(**message: Any) -> None:
        pipe.send_bytes(json.dumps(message).encode('ascii'))

    try:
        module, _, function = settings.factory.partition(':')
        synthesizer: Synthesizer = getattr(import_module(module), function)(**settings.arguments)
    except Exception as error:
        traceback.print_exc()
        send(kind='broken', error=describe(error))
        return
    send(kind='ready')
    try:
        while True:
            message = json.loads(pipe.recv_bytes())
            send(**_generate(synthesizer, message['round'], message['weights'], settings.folder))
    except (EOFError, ConnectionError):
        return


def _generate(synthesizer: Synthesizer, number: int, weights: str | None, folder: Path) -> dict[str, Any]:
    """Generate a round, stage its samples, and return the message that answers the request."""
    target = folder / f'round-{number}'
    try:
        tensors = None
        if weights is not None:
            tensors = read_checkpoint(folder / weights)
            discard(folder / weights)
        result = synthesizer(SynthesisRequest(number, weights=tensors))
        stage_samples(result.samples, target)
        return dict(kind='done', round=number, folder=target.name, statistics=plain_json(result.statistics))
    except Exception as error:
        traceback.print_exc()
        discard(target)
        return dict(kind='failed', round=number, error=describe(error))


def _redirect_output(log: Path) -> None:
    """Write all output of the process into a file, also that of libraries: the terminal is the training's."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)


def _exit_with(parent: int) -> None:
    """End the process at once when its parent is gone, whatever it is doing.

    The end of the pipe alone does not tell: data loading workers forked by the training hold it open for some seconds.
    """
    training = parent_process()
    assert training is not None
    while training.is_alive() and (os.name != 'posix' or os.getppid() == parent):
        training.join(_WATCH_SECONDS)
    os._exit(1)


# ------------------------------------------------------------------------------------------------------------- staging
def check_staging(root: str | Path) -> None:
    """Raise ValueError if the folder holds what no run left there."""
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise ValueError(f'`staging` {root} must be a folder, it is a file.')
    if root.is_dir() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise ValueError(f'`staging` {root} must be a folder for nothing else, because it is cleared: it holds '
                         f'{sorted(path.name for path in root.iterdir())[0]!r}. Name another one, or empty it.')


def open_staging(root: str | Path) -> list[str]:
    """Make the folder, or clear what a killed run left in it; return the names of what was cleared.

    Raises:
        ValueError: As :func:`check_staging` does.
    """
    root = Path(root)
    check_staging(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    left = sorted(path for path in root.iterdir() if path.name != MARKER)
    for path in left:
        discard(path)
    return [path.name for path in left]


def discard(path: Path) -> None:
    """Remove a file or folder if it is there; one that cannot be removed stays for the next run to clear."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def stage_samples(samples: Sequence[Sample], folder: Path) -> None:
    """Write a generated round into a new folder.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the details of a sample hold what JSON does not have.
    """
    folder.mkdir(parents=True)
    for number, sample in enumerate(samples):
        arrays = {name: getattr(sample, name) for name in _ARRAYS}
        np.savez(folder / f'{number}.npz', **{name: array for name, array in arrays.items() if array is not None})
    entries = [dict(id=sample.id, details=plain_json(sample.details)) for sample in samples]
    (folder / SAMPLES_FILE).write_text(json.dumps(entries, allow_nan=False), encoding='ascii')


def read_samples(folder: Path) -> list[Sample]:
    """Read what :func:`stage_samples` wrote.

    Raises:
        OSError, ValueError, BadZipFile: Among others, if files are gone or damaged.
    """
    samples = []
    for number, entry in enumerate(json.loads((folder / SAMPLES_FILE).read_text(encoding='ascii'))):
        with np.load(folder / f'{number}.npz', allow_pickle=False) as arrays:
            samples.append(Sample(entry['id'], details=entry['details'], **{name: arrays[name] for name in arrays}))
    return samples


def stage_weights(segmentor: nn.Module, path: Path) -> None:
    """Write a module's tensors as safetensors, complete or not at all. Neither the module nor randomness is touched.

    It is a hand-over between running processes, so the file is not forced to the disk: training would wait for that.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = {name: value.detach().to('cpu', copy=True).contiguous()  # a copy each: the format refuses shared storage
               for name, value in segmentor.state_dict().items() if isinstance(value, Tensor)}
    temporary = path.parent / f'{TEMPORARY_PREFIX}{path.name}'
    try:
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f'{path} could not be written: {error}') from error
    finally:
        temporary.unlink(missing_ok=True)
