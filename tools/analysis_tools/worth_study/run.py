"""All cases of a study, each a process of one thread: one that fails, or is killed, takes no other with it."""
import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import product
from multiprocessing.connection import wait
from pathlib import Path

from mmsynth.utils import progress_bar
from mmsynth.utils.cpu import available_cpus
from mmsynth.utils.files import FolderLock
from worth_study.case import Case
from worth_study.folders import case_folder, training_stages
from worth_study.plan import Study

LOG_FILE = 'log.txt'
_LOOK_SECONDS = 1.0


def run_study(study: Study, data_dir: Path, out_dir: Path, seeds: Sequence[int], *, places: str,
              jobs: int | None = None) -> list[str]:
    """Run what is missing of a study, seed by seed.

    Args:
        study: What is compared.
        data_dir: Folder of labelled images.
        out_dir: The study's folder.
        seeds: One case per seed and share.
        places: See :func:`worth_study.data.split_places`.
        jobs: Cases side by side; None for the cores that this process may use.

    Returns:
        What failed: the last line and the log file of each such case.

    Raises:
        ValueError: If ``jobs`` is below 1.
    """
    import yapf  # noqa: F401  its grammar is cached in a file, which two cases in a new environment would write at once
    jobs = available_cpus() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f'`--jobs` must be at least 1, got {jobs}.')
    waiting = deque((share, seed) for seed in seeds for share in study.shares)
    files = [case_folder(out_dir, share, seed) / f'{stage}.done' for share, seed in waiting
             for stage in _stages(study, share)]
    context, running, failed = multiprocessing.get_context('spawn'), {}, []
    try:
        with progress_bar(total=len(files), initial=_count(files), unit='stage', title='worth', smoothing=0) as bar:
            while waiting or running:
                while waiting and len(running) < jobs:
                    share, seed = waiting.popleft()
                    folder = case_folder(out_dir, share, seed)
                    folder.mkdir(parents=True, exist_ok=True)
                    process = context.Process(target=_run_case, args=(
                        study, data_dir, out_dir, places, share, seed, os.getpid()))
                    process.start()
                    running[process.sentinel] = process, folder / LOG_FILE
                for sentinel in wait(running, timeout=_LOOK_SECONDS):
                    process, log = running.pop(sentinel)
                    process.join()
                    if process.exitcode:
                        failed.append(f'{log}: {_last_line(log)} (exit status {process.exitcode})')
                bar.update(_count(files) - bar.n)
    finally:
        for process, _ in running.values():
            process.kill()
    return failed


def _run_case(study: Study, data_dir: Path, out_dir: Path, places: str, share: float, seed: int, parent: int) -> None:
    """Run one case, with its output in its own log file; ends with the study's process, however that ends."""
    threading.Thread(target=_exit_with, args=(parent, ), daemon=True).start()
    folder = case_folder(out_dir, share, seed)
    log = os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    import cv2
    import torch
    from mmseg.utils import register_all_modules
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    register_all_modules()
    lock = FolderLock(folder)
    failed = Case(study, data_dir, out_dir, places=places, share=share, seed=seed).run()
    lock.release()
    if failed:
        print(f'{len(failed)} rows failed: {" | ".join(failed)}', flush=True)
        sys.exit(1)


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS / 2)
    os._exit(1)


def _stages(study: Study, share: float) -> list[str]:
    """What a case makes that takes long: generators, critics that guide pools (but for cross-fitted ones), pools, the
    trainings of rows, judges and what they read."""
    rows, pools = study.rows_and_pools(unlabelled=share < 1)
    stages = [f'generators/{study.pools[study.rows[row].pool].generator}' for row in rows if study.rows[row].pool]
    for plan in (study.pools[pool] for pool in pools):
        if plan.guidance is not None:
            critics = study.critics[plan.critic].critics or (plan.critic, )
            stages += [f'critics/{critic}' for critic in critics if not study.critics[critic].cross_fitted]
        if plan.latent_critic:
            stages.append(f'latent_critics/{plan.generator}_{plan.critic}')
    stages += [f'pools/{pool}' for pool in pools]
    stages += [f'rows/{segmentor}/{stage}' for segmentor, row in product(study.segmentors, rows)
               for stage in training_stages(row, study.trainings)]
    for judge, pool in product(study.judges, pools):
        stages += [f'judges/{judge}', f'readings/{judge}/{pool}']
    return list(dict.fromkeys(stages))


def _count(files: Sequence[Path]) -> int:
    return sum(file.is_file() for file in files)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding='utf-8', errors='replace').split('\n') if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), 'no output')
