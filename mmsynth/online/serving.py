"""What runs in a painting process: it builds a painter once, then carries out orders until training ends.

Messages are JSON objects, one at a time, through the pipe that the process was started with::

    in    {"round": 3, "values": {…}, "weights": "critic.safetensors" | null}
    out   {"kind": "ready"}                                  the painter is built
          {"kind": "broken", "error": "…"}                   it could not be; the process ends
          {"kind": "painted", "round": 3, "folder": "round-3", "facts": {…}}
          {"kind": "failed", "round": 3, "error": "…"}       it raised; the process goes on

File names are below the process's own folder.
"""
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from mmsynth.online.orders import Order, Painter, describe
from mmsynth.online.staging import discard, stage_samples
from mmsynth.pool.manifest import plain_json
from mmsynth.utils.checkpoint import read_checkpoint

_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Duty:
    """What a painting process is started with; it must be picklable.

    Attributes:
        factory: 'module:function' that builds the painter.
        settings: The function's keyword arguments.
        folder: The process's own folder.
        log: The file that takes what it writes.
        threads: Of torch.
        nice: How much it steps back for other processes.
        parent: The process id of the training.
    """

    factory: str
    settings: Mapping[str, Any]
    folder: Path
    log: Path
    threads: int
    nice: int
    parent: int


def serve(pipe: Connection, duty: Duty) -> None:
    """The main function of the process. It ends when the pipe is closed, or training is gone however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; training decides when to end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the interpreter of the training sends when it ends
    threading.Thread(target=_leave_with, args=(duty.parent, ), daemon=True).start()
    _write_to(duty.log)
    if hasattr(os, 'nice'):
        os.nice(duty.nice)
    torch.set_num_threads(duty.threads)
    try:
        painter = load_factory(duty.factory)(**duty.settings)
    except Exception as error:
        traceback.print_exc()
        _send(pipe, kind='broken', error=describe(error))
        return
    _send(pipe, kind='ready')
    try:
        while True:
            _send(pipe, **_carry_out(painter, json.loads(pipe.recv_bytes()), duty.folder))
    except (EOFError, ConnectionError):
        return


def load_factory(name: str) -> Callable[..., Painter]:
    """The function that 'module:function' names.

    Raises:
        ImportError, AttributeError: If there is none.
    """
    module, _, function = name.partition(':')
    return getattr(import_module(module), function)


def _carry_out(painter: Painter, message: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    number = message['round']
    target = folder / f'round-{number}'
    try:
        painted = painter(Order(number, message['values'], weights=_take_weights(folder, message['weights'])))
        stage_samples(painted.samples, target)
        return dict(kind='painted', round=number, folder=target.name, facts=plain_json(painted.facts))
    except Exception as error:
        traceback.print_exc()
        discard(target)
        return dict(kind='failed', round=number, error=describe(error))


def _take_weights(folder: Path, name: str | None) -> dict[str, torch.Tensor] | None:
    """Read the critic's weights and remove their file."""
    if name is None:
        return None
    tensors = read_checkpoint(folder / name)
    discard(folder / name)
    return tensors


def _send(pipe: Connection, **message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode('ascii'))


def _write_to(log: Path) -> None:
    """Lead all output of the process into a file, also that of libraries: the terminal is the training's."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)


def _leave_with(parent: int) -> None:
    """End the process at once when its parent is gone, whatever it is doing.

    The end of the pipe alone does not tell: data loading workers forked by the training hold it open for some seconds.
    """
    training = parent_process()
    while training.is_alive() and (os.name != 'posix' or os.getppid() == parent):
        training.join(_WATCH_SECONDS)
    os._exit(1)
