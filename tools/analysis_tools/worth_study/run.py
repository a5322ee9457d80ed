"""All cases of a study, as processes of one thread each."""
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from mmsynth.utils import progress_bar
from mmsynth.utils.cpu import available_cpus
from worth_study.plan import Study


def run_study(study: Study, data_dir: Path, out_dir: Path, seeds: Sequence[int], *, places: str,
              jobs: int | None = None) -> None:
    """Run what is missing of a study.

    Args:
        study: What is compared.
        data_dir: Folder of labelled images.
        out_dir: The study's folder.
        seeds: One case per seed and share.
        places: See :func:`worth_study.data.split_places`.
        jobs: Cases side by side; None for the processors that this process may use.

    Raises:
        ValueError: If ``jobs`` is below 1; and what a case raises, after the others have ended.
    """
    jobs = available_cpus() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f'`jobs` must be at least 1, got {jobs}.')
    cases = [(share, seed) for seed in seeds for share in study.shares]
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(jobs, len(cases)), context, torch.set_num_threads, (1, )) as executor:
        futures = [executor.submit(_run_case, study, data_dir, out_dir, places, share, seed) for share, seed in cases]
        for future in progress_bar(as_completed(futures), total=len(futures), unit='case', title='worth'):
            future.result()


def _run_case(study: Study, data_dir: Path, out_dir: Path, places: str, share: float, seed: int) -> None:
    from mmseg.utils import register_all_modules

    from worth_study.case import Case
    register_all_modules()
    Case(study, data_dir, out_dir, places=places, share=share, seed=seed).run()
