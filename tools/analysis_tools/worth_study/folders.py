"""Where a case lies, and the counts of its rows."""
from pathlib import Path

import numpy as np

from worth_study.statistics import Counts


def case_folder(out_dir: Path, share: float, seed: int) -> Path:
    """Where a case lies below the study's folder."""
    return out_dir / f'share_{share:g}' / f'seed_{seed}'


def row_counts(case: Path, segmentor: str, row: str, part: str, trainings: int) -> Counts | None:
    """The counts of a row, added up over its trainings; None if one of them is not through."""
    files = [case / 'rows' / segmentor / stage / f'{part}.npy' for stage in training_stages(row, trainings)]
    done = all(file.is_file() and file.parent.with_name(f'{file.parent.name}.done').is_file() for file in files)
    return np.sum([np.load(file, allow_pickle=False) for file in files], 0) if done else None


def training_stages(row: str, trainings: int) -> list[str]:
    """The stages of a row's trainings."""
    return [row, *(f'{row}/training_{number}' for number in range(2, trainings + 1))]
