"""The folder through which a painting process hands over samples, and training the critic's weights.

::

    staging/
      .mmsynth-staging       says that the folder may be cleared
      process-1.log          what the first process wrote
      process-1/             its own folder, gone when it ends
        critic.safetensors   weights on their way to it
        round-0/             a painted round on its way back
          samples.json       ids and details
          0.npz, 1.npz, …    arrays

Nothing in it outlives a run: a message names a file only when the file is complete, and what a killed run left is
cleared by the next one. It belongs to the one writer of a pool.
"""
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mmsynth.online.sample import Sample
from mmsynth.pool.manifest import plain_json
from mmsynth.utils.files import TEMPORARY_PREFIX

MARKER = '.mmsynth-staging'
SAMPLES_FILE = 'samples.json'
_ARRAYS = ('image', 'mask', 'filtered', 'weight')


def check_staging(root: str | Path) -> None:
    """Raise ValueError if the folder holds what no staging left there."""
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise ValueError(f'`staging` {root} must be a folder, it is a file.')
    if root.is_dir() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise ValueError(f'`staging` {root} must be a folder for nothing else, because it is cleared: it holds '
                         f'{sorted(path.name for path in root.iterdir())[0]!r}. Name another one, or empty it.')


def open_staging(root: str | Path) -> list[str]:
    """Make the folder, or clear what a killed run left in it; the names of what was cleared.

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
    """Remove a file or folder if it is there; what resists stays for the next run."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def stage_samples(samples: Sequence[Sample], folder: Path) -> None:
    """Write a painted round into a new folder.

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

    It is a hand-over between living processes, so the file is not forced to the disk: training would wait for that.

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
