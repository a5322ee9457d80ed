"""Files and folders that are there in full or not at all, and the lock of a folder that has one writer."""
import hashlib
import io
import os
import re
import secrets
import shutil
import time
import unicodedata
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

TEMPORARY_PREFIX = '.tmp-'
_READABLE_LENGTH = 60


def file_name(sample_id: str) -> str:
    """A file stem for an id: the part of it that every file system takes, then 12 hex digits of its SHA-256.

    >>> file_name('val/tile 3#1')
    'val-tile-3-1-3281ee2421f4'
    """
    ascii_text = unicodedata.normalize('NFKD', sample_id).encode('ascii', 'ignore').decode()
    readable = re.sub(r'[^A-Za-z0-9_]+', '-', ascii_text).strip('-')[:_READABLE_LENGTH].rstrip('-')
    digest = hashlib.sha256(sample_id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]
    return f'{readable}-{digest}' if readable else digest


def encode_png(image: np.ndarray) -> bytes:
    """PNG of an image: (H, W) as 8-bit grey, (H, W, 3) as RGB; uint8."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format='PNG')
    return buffer.getvalue()


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write a file through a temporary one beside it: after a crash there is the old file or the new one.

    Raises:
        OSError: If it cannot be written (disk full, no permission); nothing is left behind then.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """As :func:`atomic_write`, for what is written in parts; it takes its place when the block ends without an error.

    Raises:
        OSError: See :func:`atomic_write`.
    """
    path = Path(path)
    temporary = path.parent / f'{TEMPORARY_PREFIX}{secrets.token_hex(8)}'
    try:
        with _named(path), open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def atomic_write_all(files: Mapping[Path, bytes]) -> None:
    """Write many files, each as :func:`atomic_write` would; they are on the disk together, which is much faster.

    Raises:
        OSError: If one cannot be written; the files are as before then, unless the renaming fails, which may leave some
            of them new.
    """
    temporary = {path: path.parent / f'{TEMPORARY_PREFIX}{secrets.token_hex(8)}' for path in files}
    try:
        for path, data in files.items():
            with _named(path):
                temporary[path].write_bytes(data)
        for path, part in temporary.items():  # after all were written: the first sync takes most of the others along
            with _named(path), open(part, 'rb+') as file:
                os.fsync(file.fileno())
        for path, part in temporary.items():
            os.replace(part, path)
    except BaseException:
        for part in temporary.values():
            part.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in temporary}:
        _sync_folder(folder)


def append_lines(path: str | Path, *lines: str) -> int:
    """Append lines, all or none, and wait until they are on the disk; return the byte at which they begin.

    Raises:
        OSError: If they cannot be written (disk full, no permission); the file is as before then.
    """
    with open(path, 'ab') as file:
        length = file.tell()
    try:
        with _named(path), open(path, 'ab') as file:
            file.write(''.join(f'{line}\n' for line in lines).encode('utf-8'))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.truncate(path, length)
        raise
    return length


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed :func:`atomic_write` left."""
    for path in folder.glob(f'{TEMPORARY_PREFIX}*'):
        path.unlink(missing_ok=True)


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Give an error of the system the file that it is about: that of a full disk comes without."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where folders can be opened."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """Held by the one process that writes a folder; the system frees it when that process ends, however it ends.

    Args:
        folder: An existing folder; the lock is a file in it.
        shared: Hold it together with others that share it; nobody else can hold it then.
        wait: Seconds to wait for it.
        file: The name of the lock.

    Raises:
        RuntimeError: If another writer holds it.
    """
    FILE = '.lock'

    def __init__(self, folder: Path, *, shared: bool = False, wait: float = 0, file: str = FILE) -> None:
        import fcntl  # not on Windows, where a pool can still be read
        self._file = open(folder / file, 'a+b')
        _held.add(self)
        end = time.monotonic() + wait
        try:
            while True:
                try:
                    fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise
                time.sleep(0.02)
            self._file.truncate(0)
            self._file.write(str(os.getpid()).encode())
            self._file.flush()
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read(20).decode('ascii', 'replace')
            self._file.close()
            own = ', which is this one: close what holds it' if holder == str(os.getpid()) else ''
            raise RuntimeError(f'{folder} is being written by process {holder or "(unknown)"}{own}. Wait until that '
                               'has ended, or choose another folder.') from error
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Free the lock. Safe to call twice."""
        import fcntl
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def __enter__(self) -> 'FolderLock':
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def atomic_path(out: Path, *, folder: bool) -> Iterator[Path]:
    """Give a path to write a new folder or file to, which becomes ``out`` when the block ends without an error.

    It is, or is in, the folder ``.tmp-NAME`` beside ``out``; what a killed run left there is cleared.

    Args:
        out: Where it goes; may be an empty folder.
        folder: Whether it is a folder, which is there already; else a file.

    Raises:
        FileExistsError: If ``out`` has appeared meanwhile.
        RuntimeError: If another process is writing it.
    """
    temporary = out.with_name(f'{TEMPORARY_PREFIX}{out.name}')
    temporary.mkdir(parents=True, exist_ok=True)
    with FolderLock(temporary) as lock:
        for path in temporary.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != lock.FILE:
                path.unlink()
        try:
            draft = temporary if folder else temporary / out.name
            yield draft
            if hasattr(os, 'sync'):
                os.sync()  # before the name that says it is complete
            if out.is_dir() and not any(out.iterdir()):
                out.rmdir()
            elif out.exists():
                raise FileExistsError(f'`out`: {out} has appeared meanwhile and is not overwritten.')
            (temporary / lock.FILE).unlink()
            draft.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


_held: 'weakref.WeakSet[FolderLock]' = weakref.WeakSet()


def _forget_locks() -> None:
    """In a forked process: close the copies of locks, which would hold a folder after their owner was killed."""
    for lock in _held:
        lock._file.close()  # without unlocking: the owner still has it


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_locks)
