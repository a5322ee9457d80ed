"""Trainings of a demo, those that do not depend on each other side by side, each in one thread.

The networks are so small that a second thread gains nothing, and beside another busy process it costs a tenfold.
"""
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmsynth.utils.cpu import available_cpus


class Trained(NamedTuple):
    """What came of a stage: its seconds, and the mIoU of its last validation, None without one."""

    seconds: float
    miou: float | None


def train_stages(configs: Mapping[str, Path], workers: int | None = None) -> dict[str, Trained]:
    """Train what config files say, as mmseg's tools/train.py does.

    Args:
        configs: Stage → its config file.
        workers: How many at once; None for the processors that there are. The results do not depend on it.

    Raises:
        Exception: What a training raises; the others are ended.
    """
    workers = min(len(configs), workers or available_cpus())
    if workers == 1:
        return {stage: _train(path) for stage, path in configs.items()}
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(workers, context, _start, (os.getpid(), )) as executor:
        futures = {stage: executor.submit(_train, path) for stage, path in configs.items()}
        try:
            return {stage: future.result() for stage, future in futures.items()}
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _train(path: Path) -> Trained:
    start = time.perf_counter()
    runner = Runner.from_cfg(Config.fromfile(path))
    runner.train()
    scalars = runner.message_hub.log_scalars
    miou = float(scalars['val/mIoU'].current()) if 'val/mIoU' in scalars else None
    return Trained(time.perf_counter() - start, miou)


def _start(parent: int) -> None:
    """Prepare a process: one thread, lines in the place of bars, which would overwrite each other."""
    from mmseg.utils import register_all_modules
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=False)
    sys.stderr.isatty = lambda: False
    threading.Thread(target=_end_with, args=(parent, ), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
