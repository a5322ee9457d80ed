"""The pool: a folder of synthetic samples in MMSegmentation's own layout (:mod:`mmsynth.pool`), written and read."""
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmsynth.pool.arrays import check_filtered, check_mask, check_sample
from mmsynth.pool.header import HEADER_FILE, PoolHeader, check_is_pool_or_empty, open_header, read_header
from mmsynth.pool.index import store_index
from mmsynth.pool.manifest import (
    IMAGE_FOLDER,
    JOURNAL_FILE,
    MANIFEST_FILE,
    MASK_FOLDER,
    TRACE_FILE,
    PoolRecord,
    plain_json,
)
from mmsynth.pool.records import SHARD_FOLDER, Records, RecordTable, shard_folders
from mmsynth.pool.recovery import KEPT_FILE, SELECTION_FILES, recover, write_kept, write_manifest
from mmsynth.pool.shards import ShardWriter, merge_shards
from mmsynth.pool.traces import Trace, Traces, append_trace
from mmsynth.utils.files import FolderLock, append_lines, atomic_write, atomic_write_all, encode_png, file_name
from mmsynth.utils.images import opened_image
from mmsynth.utils.shards import Shard

_TOGETHER = 4096  # records updated together


class Pool:
    """Stored synthetic samples. Made by :meth:`create` (one writer at a time, or shards) or :meth:`open` (read only).

    As a context manager it frees the folder for other writers on leaving. An error that leaves the block before the
    first sample is stored leaves no pool behind, so that the corrected run is not held to the settings of the failed.
    """

    def __init__(self, root: Path, header: PoolHeader, table: RecordTable,
                 lock: FolderLock | ShardWriter | None = None) -> None:
        self.root = root
        self._header = header
        self._table = table
        self._traces = Traces(root, grows=lock is not None)
        self._lock = lock

    @classmethod
    def create(cls, root: str | Path, settings: Mapping[str, Any], classes: Sequence[str],
               palette: Sequence[Sequence[int]], *, shard: Shard | None = None) -> 'Pool':
        """Open a pool for writing; make it if ``root`` is missing or empty. What a killed writer left is cleared.

        Args:
            root: The pool's folder.
            settings: Everything that decides what a sample looks like (generator, weights, seed, guidance, steps).
            classes: Class names.
            palette: One RGB colour in [0, 255] per class.
            shard: Write it together with others, which are given the same but for their number. Such a writer adds
                samples, updates records, and calls :meth:`finish`.

        Raises:
            ValueError: If ``root`` holds something else, or a pool made with other settings.
            RuntimeError: If another process is writing it, and is no other shard of the same number.
        """
        root, header = Path(root), PoolHeader.of(settings, classes, palette)
        check_is_pool_or_empty(root)
        root.mkdir(parents=True, exist_ok=True)
        if shard is not None:
            writer = ShardWriter(root, header, shard)
            return cls(root, header, writer.table, writer)
        lock = FolderLock(root)
        try:
            open_header(root, header)
            table = recover(root)
            if shard_folders(root):
                merge_shards(root)
                table = RecordTable(root)
            return cls(root, header, table, lock)
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
        return cls(root, read_header(root), RecordTable(root))

    @classmethod
    def resume(cls, root: str | Path, *, shard: Shard | None = None) -> 'Pool':
        """Open an existing pool for writing, whatever its settings.

        Raises:
            ValueError, RuntimeError: As :meth:`open` and :meth:`create` do.
        """
        header = read_header(Path(root))
        return cls.create(root, header.settings, header.classes, header.palette, shard=shard)

    def finish(self, order: Sequence[str], *, needs: int = 0) -> bool:
        """Say that this writer has nothing more to add; return whether the pool is its own now, as it always is without
        shards. Of shards that is the last to finish, which merges what all have written.

        Args:
            order: The ids of all samples that the shards make together, in the order that the manifest shall have.
            needs: Flags of :mod:`mmsynth.pool.index` that each sample has once the work is done, such as FILTERED.
        """
        self._check_writable()
        if isinstance(self._lock, ShardWriter):
            lock = self._lock.finish(order, needs)
            if lock is None:
                return False
            self._lock, self._table = lock, RecordTable(self.root)
            self._traces = Traces(self.root, grows=True)
        return True

    def close(self) -> None:
        """Free the folder for other writers; the records stay readable. Safe to call twice."""
        if self._lock is not None:
            try:
                if isinstance(self._lock, FolderLock):
                    self._merge_journal()
                    store_index(self.root / MANIFEST_FILE)
            finally:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> 'Pool':
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        is_empty = error is not None and not len(self) and self._lock is not None
        if is_empty and isinstance(self._lock, FolderLock):
            self._clear()
        self.close()
        if is_empty and shard_folders(self.root):
            with suppress(RuntimeError), FolderLock(self.root):  # the last one of several that failed
                if not len(RecordTable(self.root)):
                    self._clear()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def records(self) -> Records:
        """All records as they are now, oldest first; each is read from the manifest when it is asked for."""
        return self._table.records()

    @property
    def settings(self) -> dict[str, Any]:
        return plain_json(self._header.settings)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._header.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self._header.palette

    def get(self, id: str) -> PoolRecord:
        """A sample's record.

        Raises:
            KeyError: If it is not stored.
        """
        return self._table.record(id)

    def has(self, id: str) -> bool:
        """Whether this sample is stored."""
        return self._table.find(id) is not None

    def add(self, id: str, image: np.ndarray, mask: np.ndarray, *, source_mask: str, prompt: str, seed: int,
            generator: Mapping[str, str | None], reference: str | None = None,
            guidance: Mapping[str, Any] | None = None, filter: Mapping[str, Any] | None = None,
            mask_origin: Mapping[str, Any] | None = None, filtered: np.ndarray | None = None,
            weight: np.ndarray | None = None, subfolder: str | None = None) -> PoolRecord:
        """Store one sample; when this returns it is on the disk.

        Args:
            id: Unique in the pool.
            image: (H, W, 3), uint8, RGB.
            mask: (H, W), uint8, class indices; 255 where unlabelled, stored as it is.
            source_mask, prompt, seed, generator, reference, mask_origin: See :class:`PoolRecord`.
            guidance: See there, with the trace, a list with one dict of numbers per guided step.
            filter: See there; ``label`` and ``weight`` in it are set here if the arrays are given.
            filtered: The label after the filter (H, W), uint8.
            weight: The weights of its pixels (H, W), uint8.
            subfolder: Three to six digits; the files go to ``img_dir/000/`` and so on, for file systems to which many
                files in a folder are a burden.

        Raises:
            ValueError: If the id is stored already, or something breaks its rule.
            RuntimeError: If the pool is not open for writing.
            OSError: If it cannot be written, such as on a full disk; the pool is as before then.
        """
        self._check_writable()
        if self.has(id):
            raise ValueError(f'sample {id!r} is already in the pool {self.root}. Ask `has` first, or `remove` it.')
        check_sample(id, image, mask, len(self.classes))
        name = f'{file_name(id)}.png' if subfolder is None else f'{subfolder}/{file_name(id)}.png'
        record, trace = PoolRecord(
            id=id, image=f'{IMAGE_FOLDER}/{name}', mask=f'{MASK_FOLDER}/{name}', source_mask=source_mask, prompt=prompt,
            reference=reference, seed=seed, generator=dict(generator), guidance=_own(guidance), filter=_own(filter),
            mask_origin=_own(mask_origin)).split_trace()
        if filtered is not None:
            record = record.with_filter_files(weighted=weight is not None)
            extra = self._filter_images(record, filtered, weight)
        if subfolder is not None:
            for path in (record.image, record.mask):
                (self.root / path).parent.mkdir(exist_ok=True)
        try:
            atomic_write(self.root / record.image, encode_png(image))
            atomic_write(self.root / record.mask, encode_png(mask))
            if filtered is not None:
                atomic_write_all(extra)
            append_trace(self._lists, id, trace)
            line = record.to_json()
            start = append_lines(self._lists / MANIFEST_FILE, line)
        except BaseException:
            self._unlink(record)
            raise
        self._table.append(self._lists / MANIFEST_FILE, start, record, len(line) + 1)
        return record

    def update(self, records: Iterable[PoolRecord], *, filtered: Mapping[str, np.ndarray] | None = None,
               weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Put records in the place of those with the same ids.

        They are appended to a journal, which :meth:`write_kept`, :meth:`remove` and :meth:`close` merge into the
        manifest; what a killed writer left of it counts too.

        A filter's result is taken back with ``filter=None``, which removes its files, before another takes its place:
        so a label never stands beside the record of another filter, whenever the process ends. This rewrites the
        manifest, so take back many at once.

        Args:
            records: With the image and mask that are stored; in their ``filter`` the files are set here. Without
                labels so many as one likes, which are gone through once.
            filtered: Labels (H, W), uint8, by id of the record.
            weights: Weights (H, W), uint8, by id; of records with a label.

        Raises:
            ValueError: If a record is not stored, has other files, or has a label while the stored one has too.
            RuntimeError: If the pool is not open for writing.
            OSError: If it cannot be written; the records are as before then (of more than 4096 the last 4096).
        """
        self._check_writable()
        filtered, weights = filtered or {}, weights or {}
        rest: Iterator[PoolRecord] = iter(records)
        superseded: list[str] = []
        while some := list(islice(rest, _TOGETHER)):
            superseded += self._update(some, filtered, weights)
        if superseded:
            self._merge_journal()  # readers in training know the manifest only: it names no file that is gone
        for path in superseded:
            (self.root / path).unlink(missing_ok=True)

    def _update(self, records: Sequence[PoolRecord], filtered: Mapping[str, np.ndarray],
                weights: Mapping[str, np.ndarray]) -> list[str]:
        """Write some records; return the files that they name no more."""
        new = {record.id: record.with_filter_files(weighted=record.id in weights) if record.id in filtered else record
               for record in records}
        images: dict[Path, bytes] = {}
        superseded: list[str] = []
        for id, record in new.items():
            stored = self._check_update(id, record, labelled=id in filtered)
            superseded += sorted(set(stored.files) - set(record.files))
            if id in filtered:
                images |= self._filter_images(record, filtered[id], weights.get(id))
        if superseded:
            self._check_writable(alone=True)
        for name in (KEPT_FILE, *SELECTION_FILES):
            (self.root / name).unlink(missing_ok=True)  # out of date now
        atomic_write_all(images)
        lines = [record.to_json() for record in new.values()]
        start = append_lines(self._lists / JOURNAL_FILE, *lines)
        for line, record in zip(lines, new.values()):
            self._table.replace(self._lists / JOURNAL_FILE, start, record, len(line) + 1)
            start += len(line) + 1
        return superseded

    def write_kept(self) -> list[str]:
        """Write ``kept.txt``, the file stems of the samples that a filter kept in the manifest's order; return them."""
        self._check_writable(alone=True)
        self._merge_journal()
        return write_kept(self.root, self.records)

    def remove(self, ids: Iterable[str]) -> None:
        """Take samples out. The manifest is rewritten first, then their files go.

        Raises:
            ValueError: If one is not stored; nothing is removed then.
        """
        self._check_writable(alone=True)
        leaving = list(dict.fromkeys(ids))
        unknown = [id for id in leaving if not self.has(id)]
        if unknown:
            raise ValueError(f'`ids` must be stored in {self.root}, got {unknown[0]!r}')
        records = self.records
        numbers = np.array([self._table.find(id) for id in leaving], np.int64)
        gone, staying = records[numbers], records[np.delete(np.arange(len(records)), numbers)]
        if (self.root / KEPT_FILE).is_file():
            write_kept(self.root, staying)
        write_manifest(self.root, staying)
        self._traces.remove(leaving)
        for record in gone:
            self._unlink(record)
        self._table = RecordTable(self.root)

    def load_image(self, record: PoolRecord) -> np.ndarray:
        """The image (H, W, 3), uint8, RGB.

        Raises:
            ValueError: If the file cannot be read.
        """
        with opened_image(self.root / record.image) as file:
            return np.asarray(file.convert('RGB'))

    def load_mask(self, record: PoolRecord) -> np.ndarray:
        """The mask (H, W), uint8, class indices, 255 unlabelled.

        Raises:
            ValueError: If the file is no 8-bit mask of these classes.
        """
        with opened_image(self.root / record.mask, 'mask') as file:
            mask = np.asarray(file)
        check_mask(self.root / record.mask, mask, len(self.classes))
        return mask

    def load_trace(self, record: PoolRecord) -> Trace:
        """What guidance did: one dict of numbers per guided step; none without guidance.

        Raises:
            ValueError: If the file of traces is damaged.
        """
        _, trace = record.split_trace()  # of a pool of an earlier version
        return trace if trace or record.guidance is None else self._traces.load(record.id)

    def _merge_journal(self) -> None:
        if (self.root / JOURNAL_FILE).is_file():
            write_manifest(self.root, self.records)
            self._table = RecordTable(self.root)

    @property
    def _lists(self) -> Path:
        """The folder of the lists that this writer adds to."""
        return self._lock.folder if isinstance(self._lock, ShardWriter) else self.root

    def _check_writable(self, *, alone: bool = False) -> None:
        if self._lock is None:
            raise RuntimeError(f'the pool {self.root} is not open for writing. Open it with `Pool.create`.')
        if alone and isinstance(self._lock, ShardWriter):
            raise RuntimeError(f'the pool {self.root} is being written by several shards; what concerns all of it is '
                               'for the one that has finished last.')

    def _check_update(self, id: str, record: PoolRecord, labelled: bool) -> PoolRecord:
        """The stored record."""
        if not self.has(id):
            raise ValueError(f'`records` must be stored in {self.root}, got {id!r}. Use `add` for a new sample.')
        stored = self.get(id)
        if (stored.image, stored.mask) != (record.image, record.mask):
            raise ValueError(f'sample {id!r}: an update must leave `image` and `mask` as they are ({stored.image}, '
                             f'{stored.mask}), got {record.image} and {record.mask}.')
        if labelled and stored.filter is not None:
            raise ValueError(f'sample {id!r} has the result of a filter already; take it back first, by an update with '
                             '`filter` = None.')
        return stored

    def _filter_images(self, record: PoolRecord, label: np.ndarray, weight: np.ndarray | None) -> dict[Path, bytes]:
        """The encoded files of a filter's result; makes their folders."""
        check_filtered(record.id, label, weight, len(self.classes))
        paths = [self.root / path for path in record.filter_files]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        return {path: encode_png(pixels) for path, pixels in zip(paths, (label, weight)) if pixels is not None}

    def _clear(self) -> None:
        """Remove the layout of a pool without samples; the lock file stays."""
        for name in (MANIFEST_FILE, TRACE_FILE, HEADER_FILE):
            (self.root / name).unlink(missing_ok=True)
        shutil.rmtree(self.root / SHARD_FOLDER, ignore_errors=True)
        for name in (IMAGE_FOLDER, MASK_FOLDER):
            with suppress(OSError):  # somebody put a file there
                (self.root / name).rmdir()

    def _unlink(self, record: PoolRecord) -> None:
        for path in record.files:
            (self.root / path).unlink(missing_ok=True)


def _own(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if entry is None else dict(entry)
