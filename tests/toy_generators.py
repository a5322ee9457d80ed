"""Painters for the tests of painting processes: they are quick to build, and fail when told to."""
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch

from mmsynth.online.orders import Order, Painted
from mmsynth.online.sample import Sample

HERE = 'toy_generators'


def sample(id: str, value: int = 0, **changes) -> Sample:
    """A sample of one colour, half of its mask unlabelled."""
    mask = np.full((4, 6), 255, np.uint8)
    mask[:2] = value % 3
    return Sample(**dict(
        id=id, image=np.full((4, 6, 3), value, np.uint8), mask=mask,
        details=dict(source_mask='tile.png', prompt='p', seed=value,
                     generator=dict(type='toy', config_sha256='ab', weights_sha256=None))) | changes)


def build(count: int = 2, broken_from: str | None = None):
    """A painter that obeys ``order.values['do']``, one of the functions below.

    Args:
        count: Samples per round.
        broken_from: A file; if it is there, the painter cannot be built, else it is made.
    """
    if broken_from is not None:
        if Path(broken_from).exists():
            raise RuntimeError('out of memory')
        Path(broken_from).touch()

    def paint(order: Order) -> Painted:
        facts = dict(weights=None if order.weights is None else {name: value.sum().item()
                                                                 for name, value in order.weights.items()})
        facts |= DEEDS[order.values.get('do', 'paint')](order)
        samples = [sample(f'{order.round * count + k:08d}', order.round + k) for k in range(count)]
        return Painted(samples, facts)

    return paint


def no_checkpoint(path: str):
    """Fail as a generator does whose weights are not there."""
    raise FileNotFoundError(f'checkpoint {path} does not exist; give a .pth or .safetensors file.')


def _raise(order: Order) -> dict:
    raise ValueError(f'mask {order.round} cannot be\npainted')


def _kill(order: Order) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(order: Order) -> dict:
    Path(order.values['sign']).touch()
    time.sleep(600)


DEEDS = dict(
    paint=lambda order: {},
    tell=lambda order: dict(pid=os.getpid(), nice=os.nice(0), threads=torch.get_num_threads(),
                            running=threading.active_count(), values=dict(order.values)),
    say=lambda order: print('a word of a library') or {},
    nothing_json_has=lambda order: dict(array=np.zeros(2)),
    nan=lambda order: dict(loss=float('nan')),
    exit=lambda order: os._exit(137),
    **{'raise': _raise, 'kill': _kill, 'wait': _wait})
