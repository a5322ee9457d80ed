"""A pool that several processes write at once: each has lists of its own, which become the pool's at the end.

::

    root/
      manifest.jsonl                what the pool held before
      shards/0-of-4/manifest.jsonl  what process 0 of 4 added; journal and traces likewise
      shards/0-of-4/done            once it has finished

Images go to the pool's own folders. Tools read all lists as one; the last process to finish merges them in the order
that it is given, so that the pool is the same for any number of processes. No sample is in two lists, but after a merge
that was killed; the manifest's line counts then.
"""
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsynth.pool.header import SETUP_LOCK, PoolHeader, open_header
from mmsynth.pool.index import ROW, LineIndex, describe_trace, hash64
from mmsynth.pool.manifest import TRACE_FILE
from mmsynth.pool.records import SHARD_FOLDER, PoolFile, Records, RecordTable, shard_folders
from mmsynth.pool.recovery import end_lists, recover, write_manifest
from mmsynth.utils.files import FolderLock, atomic_file, atomic_write
from mmsynth.utils.hashes import config_hash
from mmsynth.utils.shards import Shard

_DONE_FILE = 'done'
_WAIT = 60.  # seconds for others to merge what is finished
_PATIENCE = 7 * 24 * 3600.  # seconds for others to leave, who have nothing left to do but that


class ShardWriter:
    """One of the processes that write a pool together.

    Args:
        root: The pool's folder.
        header: The pool's header.
        shard: Which of them it is.

    Attributes:
        folder: Where its lists are.
        table: The records of the pool, those of all lists, as they were when it joined.

    Raises:
        ValueError: If ``root`` holds a pool made with other settings.
        RuntimeError: If the pool is written by one that shares it with none or with another number, or this shard is.
    """

    def __init__(self, root: Path, header: PoolHeader, shard: Shard) -> None:
        self._root, self._shard = root, shard
        self.folder = root / SHARD_FOLDER / str(shard)
        self._lock = FolderLock(root, shared=True, wait=_WAIT)
        try:
            with FolderLock(root, file=SETUP_LOCK, wait=_PATIENCE):
                open_header(root, header)
                others = [folder for folder in shard_folders(root) if folder != self.folder and _is_held(folder)]
                if strangers := [folder.name for folder in others if not folder.name.endswith(f'-of-{shard.count}')]:
                    raise RuntimeError(f'{root} is being written by shard {strangers[0]}, which cannot go together '
                                       f'with `shard` {shard}. Wait until it has ended, or start as many as it has.')
                self.folder.mkdir(parents=True, exist_ok=True)
                self._own = FolderLock(self.folder)
                if not others:
                    recover(root)
                end_lists(self.folder)
                (self.folder / _DONE_FILE).unlink(missing_ok=True)
                self.table = RecordTable(root)
        except BaseException:
            self.release()
            raise

    def finish(self, order: Sequence[str], needs: int) -> FolderLock | None:
        """Say that this shard is done; if all are, merge the lists.

        Args:
            order: The ids of all samples that the processes make together, in the order that the manifest shall have.
            needs: Flags that each of them has once it is done.

        Returns:
            If it has merged them, the lock of the pool's only writer, who it is now; otherwise None.
        """
        wanted = config_hash(dict(ids=list(order), needs=needs))
        with FolderLock(self._root, file=SETUP_LOCK, wait=_PATIENCE):
            atomic_write(self.folder / _DONE_FILE, wanted.encode())
            all_done = all(_done(self.folder.with_name(str(Shard(index, self._shard.count)))) == wanted
                           for index in range(self._shard.count))
            ids = np.array([hash64(id) for id in order], np.uint64)
            rows = RecordTable(self._root).rows
            is_last = all_done or bool(np.isin(ids, rows['id'][rows['flags'] & needs == needs]).all())
        self.release()
        if not is_last:
            return None
        lock = FolderLock(self._root, wait=_PATIENCE)
        try:
            merge_shards(self._root, ids)
        except BaseException:
            lock.release()
            raise
        return lock

    def release(self) -> None:
        """Free shard and pool for other writers. Safe to call twice."""
        for lock in (getattr(self, '_own', None), self._lock):
            if lock is not None:
                lock.release()


def merge_shards(root: Path, order: NDArray[np.uint64] | None = None) -> None:
    """Make the lists of all shards the pool's own; needs the lock of its only writer.

    Args:
        root: The pool's folder.
        order: Hashes of ids, in whose order they come behind what the manifest holds; None for that of the shards.
    """
    folders = shard_folders(root)
    if not folders:
        return
    table = RecordTable(root)
    added = np.arange(table.num_in_manifest, len(table))
    if order is not None:
        added = added[np.argsort(_positions(table.rows['id'][added], order), kind='stable')]
    _merge_traces(root, folders, table.rows['id'][added])
    write_manifest(root, table.records()[np.concatenate([np.arange(table.num_in_manifest), added])])
    shutil.rmtree(root / SHARD_FOLDER)


def _merge_traces(root: Path, folders: Sequence[Path], added: NDArray[np.uint64]) -> None:
    """Put the traces of samples that are added behind the others, in this order of their ids."""
    paths = [path for folder in (root, *folders) if (path := folder / TRACE_FILE).is_file()]
    if not paths:
        return
    there, new = [np.zeros(0, ROW)], [np.zeros(0, ROW)]
    for number, path in enumerate(paths):
        rows = LineIndex(path, describe_trace, unique=False).rows.copy()
        rows['file'] = number
        is_added = np.isin(rows['id'], added)
        if path.parent == root:
            there.append(rows[~is_added])  # a merge that was killed may have left the others
        else:
            new.append(rows[is_added])
    rows = np.concatenate(new)[::-1]
    rows = rows[np.unique(rows['id'], return_index=True)[1]]  # of several the last
    rows = rows[np.argsort(_positions(rows['id'], added), kind='stable')]
    with atomic_file(root / TRACE_FILE) as file:
        Records([PoolFile(path) for path in paths], np.concatenate([*there, rows])).write_lines(file)


def _positions(ids: NDArray[np.uint64], order: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where ids stand in an order; behind its end those that do not."""
    if not len(order):
        return np.zeros(len(ids), np.int64)
    sorter = np.argsort(order, kind='stable')
    place = np.minimum(np.searchsorted(order, ids, sorter=sorter), len(order) - 1)
    return np.where(order[sorter[place]] == ids, sorter[place], len(order))


def _done(folder: Path) -> str | None:
    path = folder / _DONE_FILE
    return path.read_text() if path.is_file() else None


def _is_held(folder: Path) -> bool:
    try:
        FolderLock(folder).release()
    except RuntimeError:
        return True
    return False
