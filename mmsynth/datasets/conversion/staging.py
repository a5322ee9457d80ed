"""A folder that appears when it is complete."""
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmsynth.utils.files import TEMPORARY_PREFIX, FolderLock


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new folder beside ``out``, which takes its name when the block ends without an error."""
    folder = out.with_name(f'{TEMPORARY_PREFIX}{out.name}')
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder) as lock:
        _clear(folder)  # what a killed run left
        try:
            yield folder
            if hasattr(os, 'sync'):
                os.sync()  # before the name that says it is complete
            if out.exists():
                out.rmdir()  # empty, or an error now
            (folder / lock.FILE).unlink()
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != FolderLock.FILE:
            path.unlink()
