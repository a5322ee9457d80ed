"""The records of a pool: read from its files when they are asked for, found by number or id.

A million records open in less than a second where the indexes of the files are stored, and take 32 bytes each.

Legend: N records.
"""
import os
import re
from collections.abc import Iterator, Sequence
from operator import index as as_index
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from mmsynth.pool.index import ROW, LineIndex, flags_of, hash64, stem_of
from mmsynth.pool.manifest import JOURNAL_FILE, MANIFEST_FILE, PoolRecord

SHARD_FOLDER = 'shards'
_SHARD_NAME = re.compile(r'\d+-of-\d+')
_COPIED = 1 << 20  # bytes copied at once


class PoolFile:
    """A file of lines, held open: what was read of it stays what it was when the pool puts another in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0))

    @property
    def inode(self) -> int:
        """Another one once the pool has put another file in its place."""
        return os.fstat(self._descriptor).st_ino

    def read(self, start: int, length: int) -> bytes:
        """Read so many bytes from a place on."""
        if hasattr(os, 'pread'):
            return os.pread(self._descriptor, length, start)
        os.lseek(self._descriptor, start, os.SEEK_SET)  # Windows, where workers have descriptors of their own
        return os.read(self._descriptor, length)

    def __del__(self) -> None:
        if hasattr(self, '_descriptor'):
            os.close(self._descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return dict(path=self.path, inode=self.inode)

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, state['path'])
        if self.inode != state['inode']:
            raise RuntimeError(f'{self.path} was written anew while it was read. Start again.')


class Records(Sequence[PoolRecord]):
    """Records of a pool as they were at one moment, oldest first.

    Each is read and checked when it is asked for, 20 µs without a trace; a slice or an array of numbers gives a part.
    Can be pickled, to be read by another process.
    """

    def __init__(self, files: Sequence[PoolFile], rows: NDArray) -> None:
        self._files = tuple(files)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> PoolRecord: ...

    @overload
    def __getitem__(self, number: slice | NDArray) -> 'Records': ...

    def __getitem__(self, number: int | slice | NDArray) -> 'PoolRecord | Records':
        if isinstance(number, (slice, np.ndarray)):
            return Records(self._files, self.rows[number])
        return self._read(self.rows[as_index(number)])

    def __iter__(self) -> Iterator[PoolRecord]:
        return map(self._read, self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(own == given for own, given in zip(self, other))

    __hash__ = None  # type: ignore[assignment]  # the language's way of saying so

    def __repr__(self) -> str:
        return f'<{len(self)} records of {self._files[0].path if self._files else "no pool"}>'

    def find_names(self, names: Sequence[str], source: str) -> NDArray[np.int64]:
        """Numbers of the records whose files have these names, as a list such as ``selected.txt`` has them.

        Args:
            names: Stems of files.
            source: The list, for the message.

        Raises:
            ValueError: If there is no such record.
        """
        hashes = np.array([hash64(name) for name in names], np.uint64)
        unknown = np.flatnonzero(~np.isin(hashes, self.rows['name']))
        if len(unknown):
            raise ValueError(f'{source} names {names[unknown[0]]!r}, which the pool does not hold ({len(unknown)} such '
                             'names); make the list again, or delete it.')
        order = np.argsort(self.rows['name'])
        return order[np.searchsorted(self.rows['name'], hashes, sorter=order)]

    def are_in(self, path: Path) -> NDArray[np.bool_]:
        """Which of them are in a file (N)."""
        numbers = [number for number, file in enumerate(self._files) if file.path == path]
        return np.isin(self.rows['file'], numbers)

    def write_lines(self, file: BinaryIO) -> None:
        """Write the records' lines to a file, as they are."""
        starts, lengths, files = (self.rows[name].astype(np.int64) for name in ('start', 'length', 'file'))
        if not len(starts):
            return
        follows = (files[1:] == files[:-1]) & (starts[1:] == starts[:-1] + lengths[:-1])
        first = np.concatenate([[0], np.flatnonzero(~follows) + 1])
        total = np.add.reduceat(lengths, first)
        for source, start, length in zip(files[first].tolist(), starts[first].tolist(), total.tolist()):
            for place in range(start, start + length, _COPIED):
                block = self._files[source].read(place, min(_COPIED, start + length - place))
                file.write(block)
            if not block.endswith(b'\n'):  # the last line of its file
                file.write(b'\n')

    def _read(self, row: np.void) -> PoolRecord:
        file, start = self._files[row['file']], int(row['start'])
        line = file.read(start, int(row['length']))
        try:
            return PoolRecord.from_json(line.decode('utf-8'))
        except ValueError:
            number = 1 + file.read(0, start).count(b'\n')
            return PoolRecord.from_json(line.decode('utf-8', 'replace'), source=str(file.path), line_number=number)


class RecordTable:
    """All records of a pool, for one who changes them: rows of its lists, some of them replaced by a journal's.

    Args:
        root: The pool's folder.

    Attributes:
        num_in_manifest: Number of the records that the manifest holds; the others follow in the lists of shards.

    Raises:
        ValueError: If it has no manifest, or a line of its lists is wrong; names file and line.
    """

    def __init__(self, root: Path) -> None:
        manifest = root / MANIFEST_FILE
        while True:
            if not manifest.is_file():
                raise ValueError(f'{root} is not a pool (it has no {MANIFEST_FILE}). Give the folder of a synthesis '
                                 'run.')
            try:
                self._read(manifest, shard_folders(root))
                if self._files[0].inode == os.stat(manifest).st_ino:
                    return
            except FileNotFoundError:
                pass  # a writer has put another manifest in its place, and what belonged to the old one is gone

    def _read(self, manifest: Path, shards: Sequence[Path]) -> None:
        self._files = [PoolFile(manifest)]
        self._numbers: dict[int, int] = {}  # of the records that were added, by the hash of their id
        self._sorted: tuple[NDArray, NDArray] | None = None  # hashes of the others, and their numbers
        self._rows = LineIndex(manifest).rows
        self.num_in_manifest = len(self._rows)
        for path in (path for folder in shards if (path := folder / MANIFEST_FILE).is_file()):
            rows = LineIndex(path).rows.copy()
            rows['file'] = self._file(path)
            self._rows = np.concatenate([self._rows, rows[~np.isin(rows['id'], self._rows['id'])]])
        self._count = len(self._rows)
        for path in (path for folder in (manifest.parent, *shards) if (path := folder / JOURNAL_FILE).is_file()):
            self._take_newer(path, LineIndex(path, unique=False).rows)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> NDArray:
        """One row per record (N), of dtype ``ROW``; not to be changed."""
        return self._rows[:self._count]

    def records(self) -> Records:
        """The records as they are now."""
        return Records(self._files, self.rows.copy())

    def find(self, id: str) -> int | None:
        """The number of a record, None if there is none."""
        key = hash64(id)
        if key in self._numbers:
            return self._numbers[key]
        hashes, numbers = self._sorted_ids()
        place = int(np.searchsorted(hashes, np.uint64(key)))
        return int(numbers[place]) if place < len(hashes) and hashes[place] == key else None

    def record(self, id: str) -> PoolRecord:
        """A record.

        Raises:
            KeyError: If there is none.
        """
        number = self.find(id)
        if number is None:
            raise KeyError(id)
        return Records(self._files, self.rows)[number]

    def append(self, path: Path, start: int, record: PoolRecord, length: int) -> None:
        """Take up a record whose line was appended to a file of the pool."""
        self._sorted_ids()  # before it is longer
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(max(64, self._count // 2), ROW)])
        self._numbers[hash64(record.id)] = self._count
        self._rows[self._count] = self._row(path, start, record, length)
        self._count += 1

    def replace(self, path: Path, start: int, record: PoolRecord, length: int) -> None:
        """Take up a newer line of a record that is there."""
        self._rows[self.find(record.id)] = self._row(path, start, record, length)

    def _row(self, path: Path, start: int, record: PoolRecord, length: int) -> tuple[int, ...]:
        return start, hash64(record.id), hash64(stem_of(record)), length, self._file(path), flags_of(record)

    def _file(self, path: Path) -> int:
        for number, file in enumerate(self._files):
            if file.path == path:
                return number
        self._files.append(PoolFile(path))
        return len(self._files) - 1

    def _sorted_ids(self) -> tuple[NDArray, NDArray]:
        if self._sorted is None:
            numbers = np.argsort(self.rows['id'])
            self._sorted = self.rows['id'][numbers], numbers
        return self._sorted

    def _take_newer(self, path: Path, newer: NDArray) -> None:
        """Put rows in the place of those with the same ids; of several with one id the last, those of no record not."""
        hashes, numbers = self._sorted_ids()
        if not len(hashes):
            return
        ids, last = np.unique(newer['id'][::-1], return_index=True)
        place = np.minimum(np.searchsorted(hashes, ids), len(hashes) - 1)
        known = hashes[place] == ids
        newer = newer[::-1][last[known]]
        newer['file'] = self._file(path)
        self._rows[numbers[place[known]]] = newer


def shard_folders(root: Path) -> list[Path]:
    """The folders of lists that several writers of a pool have, or left."""
    folder = root / SHARD_FOLDER
    found = [path for path in folder.iterdir() if _SHARD_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: [int(part) for part in path.name.split('-of-')])


def read_list(root: str | Path, ann_file: str, records: Records) -> NDArray[np.int64]:
    """Numbers of the records whose file stems a list in the pool names, such as ``selected.txt``; in its order.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it names nothing, or what the pool does not hold.
    """
    names = (Path(root) / ann_file).read_text(encoding='utf-8').split()
    if not names:
        raise ValueError(f'`ann_file` {ann_file}: pool {root} has no samples to train on, for the list is empty.')
    return records.find_names(names, f'`ann_file` {Path(root) / ann_file}')


def read_records(root: str | Path) -> Records:
    """The records of a pool that others may be writing, oldest first.

    Raises:
        ValueError: If ``root`` has no manifest, or a line of it is wrong.
    """
    return RecordTable(Path(root)).records()
