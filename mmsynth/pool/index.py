"""Where the records of a JSON-lines file stand, as an array that opens at once and is shared by processes.

The JSON lines are the truth; the array is made of them, once, and stored beside a large file as ``FILE.index.npy``. One
that does not fit its file any more is not used.

Legend: N records.
"""
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]  # of the second the stubs do not know
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmsynth.pool.manifest import IMAGE_FOLDER, PoolRecord
from mmsynth.utils.files import atomic_write
from mmsynth.utils.progress import progress_bar

Signature = tuple[int, int, int]
Entry = tuple[str, str, int]  # of a line: id, name of its files, flags

ROW = np.dtype([('start', '<i8'), ('id', '<u8'), ('name', '<u8'), ('length', '<u4'), ('file', '<u2'), ('flags', 'u1')],
               align=True)
FILTERED, DROPPED, KEPT, LABELLED, WEIGHTED = 1, 2, 4, 8, 16  # flags of a row: what a filter said of the sample
INDEX_FROM = 16 << 20  # bytes of a file; a smaller one is read within a second
_BLOCK = 16 << 20  # bytes of a file read at once
_TRACE = re.compile(r'"trace": \[[^\]]+\]')  # in manifests of earlier versions, most of a line
_VERSION = 1


class LineIndex:
    """The lines of a JSON-lines file, one record each: 32 bytes per record.

    A line is checked when it is indexed, and again when it is read. Lines that are appended to the file are
    added by :meth:`refresh`; the index of a large file is stored for the next one who opens it.

    Args:
        path: The file.
        describe: What a line holds: ``describe(text, path, line_number)``; by default that of a manifest's records.
        unique: Whether an id may stand in the file once only.

    Attributes:
        rows: One row per line (N), of dtype ``ROW``; ``name`` and ``id`` are hashes of 64 bits.
        last_line: The last line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is wrong, or repeats an id; names file and line.
    """

    def __init__(self, path: Path, describe: Callable[[str, Path, int], Entry] | None = None, *,
                 unique: bool = True) -> None:
        self.path = path
        self.rows: NDArray = np.zeros(0, ROW)
        self.last_line = b''
        self._describe = describe or describe_record
        self._unique = unique
        self._signature: Signature | None = None
        self._sorted: tuple[NDArray, NDArray] | None = None  # hashes of the ids, and their numbers
        self._load()
        self.refresh()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """False for samples that a filter dropped (N)."""
        return (self.rows['flags'] & DROPPED) == 0

    def refresh(self) -> bool:
        """Add lines that were appended to the file, or read a rewritten one anew; return whether it has changed.

        What follows the last line break counts if it is whole.
        """
        with open(self.path, 'rb') as file:
            signature = signature_of(file)
            if signature == self._signature:
                return False
            if len(self) and self._signature is not None and (
                    signature[0] != self._signature[0] or self._line(file, len(self) - 1) != self.last_line):
                self.rows = np.zeros(0, ROW)
            self._sorted, begin = None, self._end()
            new = np.concatenate([np.zeros(0, ROW), *self._scan(file, begin)])
            if len(new):
                self.rows = np.concatenate([self.rows, new]) if len(self) else new
            if self._unique:
                self._check_unique(file)
            self._signature = signature
            self.last_line = self._line(file, len(self) - 1) if len(self) else b''
        if self._end() - begin > INDEX_FROM:
            with suppress(OSError):  # a reader may not be allowed to write there
                self.save()
        return True

    def find(self, id: str) -> int | None:
        """The number of an id's line, the last one if there are several; None if there is none."""
        if self._sorted is None:
            numbers = np.argsort(self.rows['id'], kind='stable')
            self._sorted = self.rows['id'][numbers], numbers
        hashes, numbers = self._sorted
        place = int(np.searchsorted(hashes, np.uint64(hash64(id)), side='right')) - 1
        return int(numbers[place]) if place >= 0 and hashes[place] == hash64(id) else None

    def record(self, number: int) -> PoolRecord:
        """Read the record of a line of a manifest.

        Raises:
            ValueError: If the line is no record; names file and line.
        """
        return PoolRecord.from_json(self.text(number), source=str(self.path), line_number=number + 1)

    def text(self, number: int) -> str:
        """Read a line."""
        with open(self.path, 'rb') as file:
            return self._line(file, number).decode('utf-8', 'replace')

    def save(self) -> None:
        """Write the index beside the file, where the next one who opens it finds it."""
        assert self._signature is not None
        _save(self.path, self.rows, self._signature, self.last_line)

    def _load(self) -> None:
        """Take the stored index, if it is of the file as it is now or was before lines were appended."""
        with suppress(OSError, EOFError, ValueError), open(self.path, 'rb') as file:
            stored = np.load(index_path(self.path), mmap_mode='c', allow_pickle=False)
            if stored.dtype != ROW or stored[0]['flags'] != _VERSION:
                return
            size, changed, inode, checksum, *_ = stored[0].tolist()
            signature, rows = signature_of(file), np.asarray(stored[1:])
            is_same = signature[1:] == (size, changed)
            if not is_same and not (signature[0] == inode and signature[1] > size) or not _follow(rows, size):
                return
            self.rows = rows
            self.last_line = self._line(file, len(rows) - 1)
            if zlib.crc32(self.last_line) != checksum:
                self.rows, self.last_line = np.zeros(0, ROW), b''
            elif is_same:
                self._signature = signature

    def _end(self) -> int:
        """Where the next line begins."""
        return int(self.rows[-1]['start']) + int(self.rows[-1]['length']) if len(self) else 0

    def _line(self, file: BinaryIO, number: int) -> bytes:
        row = self.rows[number]
        file.seek(int(row['start']))
        return file.read(int(row['length'])).rstrip(b'\n')

    def _scan(self, file: BinaryIO, start: int) -> Iterator[NDArray]:
        """Rows of the lines from a place on."""
        length = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        rest, number = b'', len(self)
        with progress_bar(total=length >> 20, unit='MiB', title=f'index {self.path.name}',
                          hidden=length <= INDEX_FROM) as bar:
            while block := file.read(_BLOCK):
                whole, line_break, rest = (rest + block).rpartition(b'\n')
                if line_break:
                    rows = self._rows(whole.split(b'\n'), start, number)
                    start, number = start + len(whole) + 1, number + len(rows)
                    yield rows
                bar.update(len(block) >> 20)
        if rest and self._is_whole(rest):
            yield self._rows([rest], start, number)

    def _rows(self, lines: list[bytes], start: int, number: int) -> NDArray:
        rows = []
        for line_number, line in enumerate(lines, start=number + 1):
            try:
                text = line.decode('utf-8')
            except UnicodeDecodeError as error:
                raise ValueError(f'{self.path}, line {line_number}: not UTF-8 text ({error}). Delete the line; its '
                                 'record is made again.') from error
            id, name, flags = self._describe(text, self.path, line_number)
            rows.append((start, hash64(id), hash64(name), len(line) + 1, 0, flags))
            start += len(line) + 1
        return np.array(rows, ROW)

    def _is_whole(self, line: bytes) -> bool:
        try:
            self._describe(line.decode('utf-8'), self.path, 0)
        except ValueError:
            return False
        return True

    def _check_unique(self, file: BinaryIO) -> None:
        ids = self.rows['id']
        order = np.argsort(ids, kind='stable')
        again = order[1:][ids[order][1:] == ids[order][:-1]]
        if len(again):
            number = int(again.min())
            id = self._describe(self._line(file, number).decode('utf-8'), self.path, number + 1)[0]
            raise ValueError(f'{self.path}, line {number + 1}: id {id!r} stands there twice. Delete one of the lines.')


def describe_record(text: str, path: Path, line_number: int) -> Entry:
    """What a manifest's line holds; a trace of guidance in it is not looked at before it is asked for.

    Raises:
        ValueError: If it is no record.
    """
    try:
        record = PoolRecord.from_json(_TRACE.sub('"trace": []', text))
    except ValueError:
        record = PoolRecord.from_json(text, source=str(path), line_number=line_number)
    return record.id, stem_of(record), flags_of(record)


def describe_trace(text: str, path: Path, line_number: int) -> Entry:
    """What a line of guidance traces holds; only its beginning is looked at.

    Raises:
        ValueError: If it does not begin with an id, or is not closed.
    """
    begin = '{"id": "'
    if text.startswith(begin) and text.endswith(']}'):
        with suppress(JSONDecodeError):
            return scanstring(text, len(begin), True)[0], '', 0
    raise ValueError(f'{path}, line {line_number}: must be a trace, {begin}…", "trace": […]}}, got {text!r:.80}. '
                     'Delete the line.')


def stem_of(record: PoolRecord) -> str:
    """The path of a sample's files in their folders, without the suffix."""
    return record.image.removeprefix(f'{IMAGE_FOLDER}/').removesuffix('.png')


def flags_of(record: PoolRecord) -> int:
    """What a filter said of a sample."""
    if record.filter is None:
        return 0
    found = record.filter
    return (FILTERED | DROPPED * (not found.get('keep', True)) | KEPT * bool(found.get('keep'))
            | LABELLED * (found.get('label') is not None) | WEIGHTED * (found.get('weight') is not None))


def hash64(text: str) -> int:
    """A hash of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'little')


def store_index(path: Path, rows: NDArray | None = None) -> None:
    """Store the index of a manifest, if it is large, for the next one who opens it.

    Args:
        path: The manifest.
        rows: One row per line, where they are known; otherwise its lines are read.
    """
    if not path.is_file() or path.stat().st_size <= INDEX_FROM:
        return
    if rows is None:
        LineIndex(path)
    elif len(rows):
        with open(path, 'rb') as file:
            file.seek(int(rows[-1]['start']))
            _save(path, rows, signature_of(file), file.read().rstrip(b'\n'))


def _follow(rows: NDArray, size: int) -> bool:
    """Whether rows are those of a file of so many bytes: one line after the other, from its beginning to its end."""
    ends = rows['start'] + rows['length']
    return (len(rows) > 0 and not rows['start'][0] and not rows['file'].any()
            and bool((ends[:-1] == rows['start'][1:]).all()) and size in (ends[-1], ends[-1] - 1))


def _save(path: Path, rows: NDArray, signature: Signature, last_line: bytes) -> None:
    inode, size, changed = signature
    stamp = np.array([(size, changed, inode, zlib.crc32(last_line), 0, _VERSION)], ROW)
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([stamp, rows]))
    atomic_write(index_path(path), buffer.getvalue())


def index_path(path: Path) -> Path:
    """Where the index of a file is stored."""
    return path.with_name(f'{path.stem}.index.npy')


def signature_of(file: BinaryIO) -> Signature:
    """What changes with a file's content: its inode, size and time."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def signature_at(path: Path) -> Signature | None:
    """The same of the file at a path, or None without one.

    The file is opened for it: network file systems are bound to look at the server's file then.
    """
    try:
        with open(path, 'rb') as file:
            return signature_of(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
