"""A pool as training reads it, while somebody else may be writing it.

Samples have numbers: their positions in the order in which they were published (a pool with ``rounds.jsonl``), or in
the manifest (one without). A number means the same sample for ever.
"""
import io
import json
import os
import re
import zipfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsynth.pool.header import HEADER_FILE, PoolHeader
from mmsynth.pool.manifest import MANIFEST_FILE, PoolRecord, is_record
from mmsynth.pool.rounds import ROUNDS_FILE, Round, read_rounds
from mmsynth.utils.files import atomic_write
from mmsynth.utils.labels import check_labels, read_label

Signature = tuple[int, int, int]
INDEX_FILE = 'manifest.index.npz'
LOOK_EVERY = 100  # iterations: every change costs the walk through the pool a pass over all samples
_BLOCK = 16 << 20  # bytes of a manifest read at once
_DROPPED = re.compile(rb'"keep"\s*:\s*false')


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


class ManifestIndex:
    """Where each line of a manifest stands and whether its sample is kept: 9 bytes per record.

    A record is read and checked when it is asked for, so that a pool of a million records opens in seconds, and data
    loading workers share the index with the process that forked them. A writer that closes a large pool leaves the
    index beside the manifest; one that is older than the manifest is not used.

    Args:
        path: The manifest.

    Attributes:
        starts: Byte offsets (N + 1) of the lines and of the end, int64.
        kept: False for samples that a filter dropped (N), bool.
        last_line: The last line.

    Raises:
        FileNotFoundError: If there is no manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts = np.zeros(1, np.int64)
        self.kept = np.zeros(0, bool)
        self.last_line = b''
        self._signature: Signature | None = None
        self._load()
        self.refresh()

    def __len__(self) -> int:
        return len(self.kept)

    def refresh(self) -> bool:
        """Add lines that were appended to the file, or read a rewritten one anew; return whether it has changed.

        What follows the last line break counts if it is whole.
        """
        with open(self.path, 'rb') as file:
            signature = _signature_of(file)
            if signature == self._signature:
                return False
            if len(self) and (signature[0] != self._signature[0]
                              or self._line(file, len(self) - 1) != self.last_line):
                self.starts, self.kept = np.zeros(1, np.int64), np.zeros(0, bool)
            starts, kept = [self.starts], [self.kept]
            file.seek(end := int(self.starts[-1]))
            rest = b''
            while block := file.read(_BLOCK):
                block = rest + block
                length = block.rfind(b'\n') + 1
                block, rest = block[:length], block[length:]
                self._add_lines(block, end, starts, kept)
                end += len(block)
            if is_record(rest):
                self._add_lines(rest + b'\n', end, starts, kept)
            self.starts, self.kept, self._signature = np.concatenate(starts), np.concatenate(kept), signature
            self.last_line = self._line(file, len(self) - 1) if len(self) else b''
        return True

    def record(self, number: int) -> PoolRecord:
        """Read the record of a line.

        Raises:
            ValueError: If the line is no record; names file and line.
        """
        with open(self.path, 'rb') as file:
            text = self._line(file, number).decode('utf-8', 'replace')
        return PoolRecord.from_json(text, source=str(self.path), line_number=number + 1)

    def find(self, wanted: Collection[str]) -> dict[str, int]:
        """Numbers of the lines of records, by id; ids that are not there are left out."""
        found = {}
        with open(self.path, 'rb') as file:
            for line, text in zip(range(len(self)), file):
                id = json.loads(text).get('id')
                if id in wanted:
                    found[id] = line
        return found

    def save(self) -> None:
        """Write the index beside the manifest, where the next reader finds it; for the writer of the pool."""
        buffer = io.BytesIO()
        np.savez(buffer, starts=self.starts, kept=self.kept, status=np.array(self._signature[1:], np.int64))
        atomic_write(self.path.with_name(INDEX_FILE), buffer.getvalue())

    def _load(self) -> None:
        """Take the stored index, if it is of the manifest as it is now."""
        with suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile), \
                np.load(self.path.with_name(INDEX_FILE), allow_pickle=False) as stored, open(self.path, 'rb') as file:
            signature = _signature_of(file)
            if tuple(stored['status'].tolist()) == signature[1:]:
                self.starts, self.kept, self._signature = stored['starts'], stored['kept'], signature
                self.last_line = self._line(file, len(self) - 1)

    def _line(self, file: BinaryIO, number: int) -> bytes:
        file.seek(int(self.starts[number]))
        return file.read(int(self.starts[number + 1] - self.starts[number])).rstrip(b'\n')

    @staticmethod
    def _add_lines(block: bytes, offset: int, starts: list[NDArray], kept: list[NDArray]) -> None:
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10).astype(np.int64)
        keep = np.ones(len(ends), bool)
        dropped = [match.start() for match in _DROPPED.finditer(block)]
        for line in np.unique(np.searchsorted(ends, dropped)).tolist():
            first = int(ends[line - 1]) + 1 if line else 0
            found = json.loads(block[first:int(ends[line])]).get('filter') or {}  # the words may stand elsewhere
            keep[line] = bool(found.get('keep', True))
        starts.append(ends + 1 + offset)
        kept.append(keep)


class PoolReader:
    """The samples of a pool by number. Opens nothing before it is asked, keeps no file open, and can be pickled.

    A folder that does not exist is an empty pool, since the one who fills it may come later.

    A pool with ``rounds.jsonl`` says itself from which iteration on a sample counts, so every reader sees the same at
    the same iteration. One without, which ``tools/synthesize.py`` or a filter may still be writing, cannot: readers
    look at it when they start and then every ``LOOK_EVERY`` (100) iterations, and what they find counts from the
    iteration at which they look. So a training on a pool that does not change is repeatable and resumes exactly, and
    all its ranks draw parts of one global batch. While a pool without rounds is written, neither holds: ranks that look
    at different moments may draw a sample twice or leave one out in that epoch (batches keep their size and share), and
    a resumed training takes all that is there as if it had been there from the start.

    Args:
        root: The pool's folder.

    Attributes:
        changes: What happened to the pool, as far as known.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.changes: list[Change] = []
        self._ids: list[str] | None = None  # of the rounds, in their order
        self._lines: dict[str, int] = {}  # of the rounds' samples in the manifest
        self._index: ManifestIndex | None = None
        self._kept = np.zeros(0, bool)  # of the index when ``changes`` were last brought up to date
        self._looked: int | None = None  # iteration of the last look at a manifest without rounds
        self._seen: dict[str, Signature | None] = {}

    def header(self) -> PoolHeader | None:
        """What the pool's samples have in common; None where there is no pool yet.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.root / HEADER_FILE
        return PoolHeader.read(path) if path.is_file() else None

    def update(self, iteration: int | None = None) -> bool:
        """Look whether samples were added since; return whether there is anything new.

        Args:
            iteration: The training iteration that is about to be drawn; None looks at once, whenever the last look was.

        Raises:
            ValueError: If the pool's lists are damaged.
        """
        if self._is_new(ROUNDS_FILE):
            self._take_rounds(read_rounds(self.root))
            return True
        if self._seen[ROUNDS_FILE] is not None:
            return False
        if self._index is not None and iteration is not None and iteration // LOOK_EVERY == self._looked // LOOK_EVERY:
            return False
        is_first, self._looked = self._looked is None, max(iteration or 0, self._looked or 0)
        return self._follow_manifest() and self._take_manifest(0 if is_first else self._looked)

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
        """A sample's record; the pool's lists are read again if they have changed. None if it is not there.

        Raises:
            ValueError: If the pool's lists are damaged.
        """
        if self._ids is None and self._index is None or self._ids is not None and number >= len(self._ids):
            self.update()
        if self._ids is None:
            if self._index is None or not self._follow_manifest() or not 0 <= number < len(self._index):
                return None
            return self._index.record(number)
        if not 0 <= number < len(self._ids):
            return None
        id = self._ids[number]
        if id not in self._lines or self._is_new(MANIFEST_FILE):
            self._find_lines()
        line = self._lines.get(id)
        return None if line is None else self._index.record(line)

    def _take_rounds(self, rounds: Sequence[Round]) -> None:
        self._ids = [id for round in rounds for id in round.ids]
        numbers = {id: number for number, id in enumerate(self._ids)}
        self.changes = [Change(round.usable_from, tuple(numbers[id] for id in round.ids),
                               tuple(numbers[id] for id in round.retired)) for round in rounds]

    def _find_lines(self) -> None:
        path = self.root / MANIFEST_FILE
        self._seen[MANIFEST_FILE] = _signature(path)
        self._index = ManifestIndex(path) if path.is_file() else None
        self._lines = {} if self._index is None else self._index.find(set(self._ids))

    def _follow_manifest(self) -> bool:
        """Bring the index up to date; return whether there is a manifest.

        Raises:
            ValueError: If it is another one than before: samples that were there are not, or not in their places.
        """
        index = self._index
        try:
            if index is None:
                self._index = ManifestIndex(self.root / MANIFEST_FILE)
                return True
            count, last_line = len(index), index.last_line
            if not index.refresh() or not count:
                return True
        except FileNotFoundError:
            return False
        if len(index) < count or index.record(count - 1).id != json.loads(last_line)['id']:
            raise ValueError(f'{self.root}: samples were removed from the pool while it was read ({count} were there, '
                             f'{len(index)} are). Start the training again.')
        return True

    def _take_manifest(self, iteration: int) -> bool:
        """Let all samples join but those that a filter dropped, and those retire that it has dropped since."""
        before = np.pad(self._kept, (0, len(self._index) - len(self._kept)))
        self._kept = self._index.kept
        joined, retired = (np.flatnonzero(found) for found in (self._kept & ~before, before & ~self._kept))
        if len(joined) or len(retired):
            self.changes.append(Change(iteration, tuple(joined.tolist()), tuple(retired.tolist())))
        return bool(len(joined) or len(retired))

    def _is_new(self, name: str) -> bool:
        """Whether a file is there and is not as it was when last asked."""
        before, self._seen[name] = self._seen.get(name), _signature(self.root / name)
        return self._seen[name] not in (None, before)


class FileCheck:
    """Check whether the files of samples are whole. What was whole is read again only after it was changed.

    mmseg's loaders take what a truncated file holds, or stop the training; so files are looked at before.

    Args:
        root: The pool's folder.
        num_classes: Of the labels.
    """

    def __init__(self, root: Path, num_classes: int) -> None:
        self._root = root
        self._num_classes = num_classes
        self._whole: set[int] = set()  # a hash per sample: workers come to hold one for every sample of the pool

    def fault(self, record: PoolRecord) -> str | None:
        """Return what is wrong with a sample's files, or None."""
        image, *labels = (self._root / file for file in used_files(record))
        state = hash(tuple(map(_signature, (image, *labels))))
        if state in self._whole:
            return None
        try:
            with Image.open(image) as opened:
                opened.load()
                size = opened.height, opened.width
        except FileNotFoundError:
            return f'image {image} does not exist'
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f'image {image} cannot be read: {error}'
        try:
            maps = [read_label(str(path)) for path in labels]
            check_labels(maps[0], self._num_classes, labels[0])
        except (OSError, ValueError) as error:
            return str(error)
        for path, pixels in zip(labels, maps):
            if pixels.shape != size:
                return (f'{image} is {size[0]} x {size[1]} (height x width), {path} is {pixels.shape[0]} x '
                        f'{pixels.shape[1]}')
        self._whole.add(state)
        return None


def used_files(record: PoolRecord) -> tuple[str, ...]:
    """The files of a sample that training reads: image, label, and the weights of its pixels if a filter gave some.

    The label is that of the filter where one ran.
    """
    found = record.filter or {}
    return tuple(filter(None, (record.image, found.get('label') or record.mask, found.get('weight'))))


def _signature(path: Path) -> Signature | None:
    """What changes with a file's content, or None without the file.

    The file is opened for it: network file systems are bound to look at the server's file then.
    """
    try:
        with open(path, 'rb') as file:
            return _signature_of(file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _signature_of(file: BinaryIO) -> Signature:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns
