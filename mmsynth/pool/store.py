"""The pool: a folder of synthetic samples in MMSegmentation's own layout (DESIGN 10).

::

    root/
      pool.json          what all samples share: settings, classes, palette
      manifest.jsonl     one line per sample; a sample counts when its line is complete
      img_dir/NAME.png   RGB
      ann_dir/NAME.png   8-bit class index, 255 unlabelled

A sample's two files are in place before its line is written, so a killed writer leaves at most files without a line;
the next one removes them. Any MMSegmentation config can train from the folder with this package not installed.
"""
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsynth.pool.header import HEADER_FILE, IGNORE_INDEX, PoolHeader
from mmsynth.pool.manifest import IMAGE_FOLDER, MANIFEST_FILE, MASK_FOLDER, PoolRecord, parse_manifest, plain_json
from mmsynth.pool.recovery import recover, write_manifest
from mmsynth.utils.files import TEMPORARY_PREFIX, FolderLock, append_line, atomic_write, encode_png, file_name


class Pool:
    """Stored synthetic samples. Made by :meth:`create` (one writer at a time) or :meth:`open` (read only).

    As a context manager it frees the folder for other writers on leaving. An error that leaves the block before the
    first sample is stored leaves no pool behind, so that the corrected run is not held to the settings of the failed.
    """

    def __init__(self, root: Path, header: PoolHeader, records: Iterable[PoolRecord],
                 lock: FolderLock | None = None) -> None:
        self.root = root
        self._header = header
        self._records = {record.id: record for record in records}
        self._lock = lock

    @classmethod
    def create(cls, root: str | Path, settings: Mapping[str, Any], classes: Sequence[str],
               palette: Sequence[Sequence[int]]) -> 'Pool':
        """Open a pool for writing; make it if ``root`` is missing or empty. What a killed writer left is cleared.

        Args:
            root: The pool's folder.
            settings: Everything that decides what a sample looks like (generator, weights, seed, guidance, steps).
            classes: Class names.
            palette: One RGB colour in [0, 255] per class.

        Raises:
            ValueError: If ``root`` holds something else, or a pool made with other settings.
            RuntimeError: If another process is writing it.
        """
        root, header = Path(root), PoolHeader(settings, classes, palette)
        _check_is_pool_or_empty(root)
        root.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(root)
        try:
            _open_header(root, header)
            return cls(root, header, recover(root), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, root: str | Path) -> 'Pool':
        """Open a pool for reading, as it is at this moment; a writer may go on meanwhile.

        Raises:
            ValueError: If ``root`` is not a pool, or its files are damaged.
        """
        root = Path(root)
        if not (root / HEADER_FILE).is_file():
            raise ValueError(f'{root} is not a pool (it has no {HEADER_FILE}). Give the folder of a synthesis run.')
        return cls(root, PoolHeader.read(root / HEADER_FILE), read_records(root))

    def close(self) -> None:
        """Free the folder for other writers; the records stay readable. Safe to call twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> 'Pool':
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if error is not None and not self._records and self._lock is not None:
            self._clear()
        self.close()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[PoolRecord]:
        """All records, oldest first; a new list."""
        return list(self._records.values())

    @property
    def settings(self) -> dict[str, Any]:
        return plain_json(self._header.settings)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._header.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self._header.palette

    def has(self, id: str) -> bool:
        """Whether this sample is stored."""
        return id in self._records

    def add(self, id: str, image: np.ndarray, mask: np.ndarray, *, source_mask: str, prompt: str, seed: int,
            generator: Mapping[str, str | None], reference: str | None = None,
            guidance: Mapping[str, Any] | None = None, filter: Mapping[str, Any] | None = None) -> PoolRecord:
        """Store one sample; when this returns it is on the disk.

        Args:
            id: Unique in the pool.
            image: (H, W, 3), uint8, RGB.
            mask: (H, W), uint8, class indices; 255 where unlabelled, stored as it is.
            source_mask, prompt, seed, generator, reference, guidance, filter: See :class:`PoolRecord`.

        Raises:
            ValueError: If the id is stored already, or something breaks its rule.
            RuntimeError: If the pool is not open for writing.
            OSError: If it cannot be written, such as on a full disk; the pool is as before then.
        """
        self._check_writable()
        if self.has(id):
            raise ValueError(f'sample {id!r} is already in the pool {self.root}. Ask `has` first, or `remove` it.')
        self._check_arrays(id, image, mask)
        name = f'{file_name(id)}.png'
        record = PoolRecord(id=id, image=f'{IMAGE_FOLDER}/{name}', mask=f'{MASK_FOLDER}/{name}',
                            source_mask=source_mask, prompt=prompt, reference=reference, seed=seed,
                            generator=dict(generator), guidance=guidance, filter=filter)
        manifest = self.root / MANIFEST_FILE
        length = manifest.stat().st_size
        try:
            atomic_write(self.root / record.image, encode_png(image))
            atomic_write(self.root / record.mask, encode_png(mask))
            append_line(manifest, record.to_json())
            self._records[id] = record
        except BaseException:
            os.truncate(manifest, length)
            self._unlink(record)
            raise
        return record

    def remove(self, ids: Iterable[str]) -> None:
        """Take samples out. The manifest is rewritten first, then their files go.

        Raises:
            ValueError: If one is not stored; nothing is removed then.
        """
        self._check_writable()
        leaving = list(dict.fromkeys(ids))
        unknown = [id for id in leaving if not self.has(id)]
        if unknown:
            raise ValueError(f'`ids` must be stored in {self.root}, got {unknown[0]!r}')
        staying = {id: record for id, record in self._records.items() if id not in set(leaving)}
        write_manifest(self.root / MANIFEST_FILE, staying.values())
        for id in leaving:
            self._unlink(self._records[id])
        self._records = staying

    def load_image(self, record: PoolRecord) -> np.ndarray:
        """The image (H, W, 3), uint8, RGB."""
        with Image.open(self.root / record.image) as file:
            return np.asarray(file.convert('RGB'))

    def load_mask(self, record: PoolRecord) -> np.ndarray:
        """The mask (H, W), uint8, class indices, 255 unlabelled.

        Raises:
            ValueError: If the file is no 8-bit mask of these classes.
        """
        with Image.open(self.root / record.mask) as file:
            mask = np.asarray(file)
        self._check_mask(self.root / record.mask, mask)
        return mask

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RuntimeError(f'the pool {self.root} is not open for writing. Open it with `Pool.create`.')

    def _check_arrays(self, id: str, image: np.ndarray, mask: np.ndarray) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f'sample {id!r}: `image` must be (H, W, 3) uint8, got {image.shape} {image.dtype}')
        self._check_mask(f'sample {id!r}', mask)
        if image.shape[:2] != mask.shape or not mask.size:
            raise ValueError(f'sample {id!r}: `image` and `mask` must have one size, not empty, got '
                             f'{image.shape[:2]} and {mask.shape}')

    def _check_mask(self, source: str | Path, mask: np.ndarray) -> None:
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f'{source}: `mask` must be (H, W) uint8, got {mask.shape} {mask.dtype}')
        wrong = mask[(mask >= len(self.classes)) & (mask != IGNORE_INDEX)]
        if wrong.size:
            raise ValueError(f'{source}: `mask` must hold class indices below {len(self.classes)} or {IGNORE_INDEX}, '
                             f'got {int(wrong[0])} ({wrong.size} such pixels)')

    def _clear(self) -> None:
        """Remove the layout of a pool without samples; the lock file stays."""
        for name in (MANIFEST_FILE, HEADER_FILE):
            (self.root / name).unlink(missing_ok=True)
        for name in (IMAGE_FOLDER, MASK_FOLDER):
            with suppress(OSError):  # somebody put a file there
                (self.root / name).rmdir()

    def _unlink(self, record: PoolRecord) -> None:
        for path in (record.image, record.mask):
            (self.root / path).unlink(missing_ok=True)


def read_records(root: str | Path) -> list[PoolRecord]:
    """The records of a pool that others may be writing, oldest first.

    Raises:
        ValueError: If ``root`` has no manifest, or a line of it is wrong.
    """
    path = Path(root) / MANIFEST_FILE
    if not path.is_file():
        raise ValueError(f'{root} is not a pool (it has no {MANIFEST_FILE}). Give the folder of a synthesis run.')
    return parse_manifest(path)


def _check_is_pool_or_empty(root: Path) -> None:
    """Refuse a folder that somebody else fills. A lock or temporary file is what a killed ``create`` left."""
    if root.exists() and not root.is_dir():
        raise ValueError(f'{root} must be a folder, it is a file. Choose another --out-dir.')
    if not root.exists() or (root / HEADER_FILE).is_file():
        return
    strangers = [path.name for path in root.iterdir()
                 if path.name != FolderLock.FILE and not path.name.startswith(TEMPORARY_PREFIX)]
    # The header may have been written since: a second writer started in the same moment.
    if strangers and not (root / HEADER_FILE).is_file():
        raise ValueError(f'{root} is not empty and not a pool (it has no {HEADER_FILE}, but {sorted(strangers)[0]!r}). '
                         f'Choose another --out-dir, or empty this folder.')


def _open_header(root: Path, header: PoolHeader) -> None:
    """Write the header, or hold an existing one against it; make the layout."""
    path = root / HEADER_FILE
    if not path.is_file():
        atomic_write(path, header.to_json().encode('utf-8'))
    differences = PoolHeader.read(path).differences(header)
    if differences:
        listed = '\n  '.join(differences)
        raise ValueError(f'{root} holds a pool made with other settings:\n  {listed}\n'
                         f'Choose another --out-dir, delete the folder, or go back to its settings.')
    for name in (IMAGE_FOLDER, MASK_FOLDER):
        (root / name).mkdir(exist_ok=True)
