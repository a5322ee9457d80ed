"""A pool as training reads it, while somebody else may be writing it.

Samples have numbers: their positions in the order in which they were published (a pool with ``rounds.jsonl``), or in
the manifest (one without, all of whose samples are there from the start). A number means the same sample for ever.
"""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsynth.pool import PoolRecord, read_records
from mmsynth.pool.arrays import check_mask
from mmsynth.pool.header import HEADER_FILE, PoolHeader
from mmsynth.pool.manifest import MANIFEST_FILE
from mmsynth.pool.rounds import ROUNDS_FILE, Round, read_rounds
from mmsynth.utils.labels import read_label

Signature = tuple[int, int, int]


class Change(NamedTuple):
    """What enters and leaves a pool with one round.

    Attributes:
        iteration: The first training iteration that it counts for.
        joined: Numbers of the samples that are drawn from then on.
        retired: Numbers of those that are drawn no longer.
    """

    iteration: int
    joined: tuple[int, ...]
    retired: tuple[int, ...] = ()


class PoolReader:
    """The samples of a pool by number. Opens nothing before it is asked, keeps no file open, and can be pickled.

    A folder that does not exist is an empty pool, since the one who fills it may come later.

    Args:
        root: The pool's folder.

    Attributes:
        changes: What happened to the pool, as far as known.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.changes: list[Change] = []
        self._ids: list[str] | None = None
        self._records: dict[str, PoolRecord] = {}
        self._seen: dict[str, Signature | None] = {}

    def header(self) -> PoolHeader | None:
        """What the pool's samples have in common; None where there is no pool yet.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.root / HEADER_FILE
        return PoolHeader.read(path) if path.is_file() else None

    def update(self) -> bool:
        """Look whether rounds were published since, and read them; whether there is anything new.

        Raises:
            ValueError: If the pool's lists are damaged.
        """
        if self._is_new(ROUNDS_FILE):
            self._take_rounds(read_rounds(self.root))
            return True
        if self._ids is None and self._seen[ROUNDS_FILE] is None and self._is_new(MANIFEST_FILE):
            self._take_manifest()
            return True
        return False

    def live(self, iteration: int | None = None) -> list[int]:
        """Numbers of the samples that are live at a training iteration; None for all that is known."""
        live: dict[int, None] = {}
        for change in self.changes:
            if iteration is None or change.iteration <= iteration:
                live.update(dict.fromkeys(change.joined))
                for number in change.retired:
                    live.pop(number, None)
        return list(live)

    def record(self, number: int) -> PoolRecord | None:
        """A sample's record; the pool's lists are read again for one that is not known. None if it is not there.

        Raises:
            ValueError: If the pool's lists are damaged.
        """
        if self._ids is None or number >= len(self._ids):
            self.update()
        if self._ids is None or not 0 <= number < len(self._ids):
            return None
        id = self._ids[number]
        if id not in self._records and self._is_new(MANIFEST_FILE):
            self._read_manifest()
        return self._records.get(id)

    def _take_rounds(self, rounds: Sequence[Round]) -> None:
        self._ids = [id for round in rounds for id in round.ids]
        numbers = {id: number for number, id in enumerate(self._ids)}
        self.changes = [Change(round.usable_from, tuple(numbers[id] for id in round.ids),
                               tuple(numbers[id] for id in round.retired)) for round in rounds]

    def _take_manifest(self) -> None:
        """All samples but those that a filter dropped, from the first iteration on."""
        self._read_manifest()
        self._ids = list(self._records)
        kept = (number for number, record in enumerate(self._records.values())
                if record.filter is None or record.filter.get('keep', True))
        self.changes = [Change(0, tuple(kept))]

    def _read_manifest(self) -> None:
        is_there = (self.root / MANIFEST_FILE).is_file()
        self._records = {record.id: record for record in read_records(self.root)} if is_there else {}

    def _is_new(self, name: str) -> bool:
        """Whether a file is there and is not as it was when last asked."""
        before, self._seen[name] = self._seen.get(name), _signature(self.root / name)
        return self._seen[name] not in (None, before)


class FileCheck:
    """Whether the files of samples are whole. Each is read in full once, and again only after it was changed.

    mmseg's loaders take what a truncated file holds, or stop the training; so files are looked at before.

    Args:
        root: The pool's folder.
        num_classes: Of the labels.
    """

    def __init__(self, root: Path, num_classes: int) -> None:
        self._root = root
        self._num_classes = num_classes
        self._known: dict[str, tuple[list[Signature | None], str | None]] = {}

    def fault(self, record: PoolRecord) -> str | None:
        """What is wrong with a sample's files, or None."""
        files = used_files(record)
        signatures = [_signature(self._root / file) for file in files]
        known = self._known.get(record.id)
        if known is None or known[0] != signatures:
            known = self._known[record.id] = signatures, self._find_fault(*files)
        return known[1]

    def _find_fault(self, image: str, label: str, *weight: str) -> str | None:
        try:
            size = _image_size(self._root / image)
            mask = read_label(str(self._root / label))
            check_mask(self._root / label, _in_8_bits(self._root / label, mask), self._num_classes)
            sizes = {label: mask.shape, **{file: read_label(str(self._root / file)).shape for file in weight}}
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return str(error)
        wrong = [f'{self._root / file} is {other[0]} x {other[1]}' for file, other in sizes.items() if other != size]
        return f'{self._root / image} is {size[0]} x {size[1]} (height x width), {wrong[0]}' if wrong else None


def used_files(record: PoolRecord) -> tuple[str, ...]:
    """The files of a sample that training reads: image, label, and the weights of its pixels if a filter gave some.

    The label is that of the filter where one ran.
    """
    found = record.filter or {}
    return tuple(filter(None, (record.image, found.get('label') or record.mask, found.get('weight'))))


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            image.load()
            return image.height, image.width
    except FileNotFoundError:
        raise ValueError(f'image {path} does not exist') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'image {path} cannot be read: {error}') from error


def _in_8_bits(path: Path, mask: NDArray[np.int32]) -> NDArray[np.uint8]:
    if mask.min(initial=0) < 0 or mask.max(initial=0) > 255:
        raise ValueError(f'label {path} must have 8 bits, found values up to {mask.max()}')
    return mask.astype(np.uint8)


def _signature(path: Path) -> Signature | None:
    """What changes with a file's content, or None without the file.

    The file is opened for it: network file systems are bound to look at the server's file then.
    """
    try:
        with open(path, 'rb') as file:
            status = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
