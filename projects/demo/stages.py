"""Stages of a demo: those that do not depend on each other run side by side, each in one thread.

The networks are so small that a second thread gains nothing, and beside another busy process it costs a tenfold.
"""
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmsynth.evaluation import Consistency
from mmsynth.utils.cpu import available_cpus

_IMPORTS = ['mmseg.apis', 'mmsynth.apis.synthesize']  # which bring what stages need

Name, Result = TypeVar('Name'), TypeVar('Result')


class Done(NamedTuple):
    """What came of a stage.

    Attributes:
        seconds: That it took.
        miou: Of its last validation; None without one.
        readings: Reader → what it found in the images that the stage made; None without any.
    """

    seconds: float
    miou: float | None = None
    readings: dict[str, Consistency] | None = None


class Stages:
    """Worker processes that run what does not depend on each other. Importing takes seconds: it is done once for all of
    them, beside what comes before the first call, and they are kept until the ``with`` block is left.

    Args:
        workers: How many at once, in this process if it is 1; None for the processors that there are.
    """

    def __init__(self, workers: int | None = None) -> None:
        workers = workers or available_cpus()
        self._executor = None
        if workers > 1:
            method = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
            if method == 'forkserver':
                forkserver.set_forkserver_preload(_IMPORTS)
                forkserver.ensure_running()
            self._executor = ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start)

    def __enter__(self) -> 'Stages':
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._executor is None:
            return
        if error is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self._executor.shutdown()

    def run(self, stages: Mapping[Name, Callable[[], Result]]) -> dict[Name, Result]:
        """Call functions and return what each returns.

        Args:
            stages: Name → a function without arguments that can be pickled.

        Raises:
            Exception: What a stage raises, as soon as it does; leaving the ``with`` block ends the others.
        """
        if self._executor is None:
            return {stage: function() for stage, function in stages.items()}
        futures = {stage: self._executor.submit(function) for stage, function in stages.items()}
        for future in as_completed(futures.values()):
            future.result()  # raises what it raised, while others run
        return {stage: future.result() for stage, future in futures.items()}


def train(path: Path) -> Done:
    """Train what a config file says, as mmseg's tools/train.py does."""
    start = time.perf_counter()
    runner = Runner.from_cfg(Config.fromfile(path))
    runner.train()
    scalars = runner.message_hub.log_scalars
    miou = float(scalars['val/mIoU'].current()) if 'val/mIoU' in scalars else None
    return Done(time.perf_counter() - start, miou)


def _start() -> None:
    """Prepare a process: one thread, lines in the place of bars, which would overwrite each other."""
    from mmseg.utils import register_all_modules
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=False)
    sys.stderr.isatty = lambda: False
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(), ), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
