"""What the next writer does with a pool whose last one may have ended at any moment."""
import logging
import os
import re
import secrets
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.logging import print_log
from numpy.typing import NDArray

from mmsynth.pool.index import (
    KEPT,
    LABELLED,
    WEIGHTED,
    Entry,
    describe_record,
    describe_trace,
    hash64,
    index_path,
    stem_of,
    store_index,
)
from mmsynth.pool.manifest import (
    FILTERED_FOLDER,
    IMAGE_FOLDER,
    JOURNAL_FILE,
    MANIFEST_FILE,
    MASK_FOLDER,
    TRACE_FILE,
    WEIGHT_FOLDER,
)
from mmsynth.pool.records import Records, RecordTable, shard_folders
from mmsynth.pool.rounds import ROUNDS_FILE
from mmsynth.utils.files import append_lines, atomic_file, atomic_write, remove_temporaries

KEPT_FILE = 'kept.txt'
SELECTION_FILES = ('selected.txt', 'images_per_mask.json')  # made from what a filter found
ORPHAN_FOLDER = '.orphans'
_POOL_NAME = re.compile(r'([A-Za-z0-9_-]+-)?[0-9a-f]{12}\.png')  # of utils.files.file_name
_FOLDERS = (IMAGE_FOLDER, MASK_FOLDER, FILTERED_FOLDER, WEIGHT_FOLDER)


def recover(root: Path) -> RecordTable:
    """Bring files and manifest of a pool that a writer may have left at any moment to agree; needs the lock.

    A torn last line is cut off, and the journal merged. Temporary files are removed. Of files without a line, those
    that a pool could have written move to ``.orphans/``: a killed writer leaves such files, and so does a manifest
    that was restored from an older copy. Other files stay, and so does everything behind a symbolic link. Lines
    without files leave the manifest with a warning. A line whose filter's files are gone stays, without the filter's
    result. ``kept.txt`` goes if it names a sample that is not kept any more. Lists of shards are held to the same.

    Raises:
        ValueError: If the manifest is damaged, or is missing or empty while there are images.
    """
    folders = [root / name for name in _FOLDERS]
    for folder in folders:
        if not folder.is_symlink():
            for part in (folder, *filter(Path.is_dir, folder.glob('[0-9]*'))):
                remove_temporaries(part)
    manifest = root / MANIFEST_FILE
    if not manifest.is_file():
        if any(path for folder in folders for path in folder.rglob('*.png')):
            raise ValueError(f'{root} has images but no {MANIFEST_FILE}, so nobody knows what they are. Restore that '
                             f'file, choose another --out-dir, or delete the folder.')
        atomic_write(manifest, b'')
    for folder in (root, *shard_folders(root)):
        end_lists(folder)
    table = RecordTable(root)
    if not len(table) and not (root / ROUNDS_FILE).is_file():
        count = sum(1 for path in folders[0].rglob('*.png') if _POOL_NAME.fullmatch(path.name))
        if count > 1:  # a killed writer leaves one
            raise ValueError(f'{root} has {count} images and an empty {MANIFEST_FILE}, so nobody knows what they are. '
                             'Restore that file, choose another --out-dir, or delete the folder.')
    if any((folder / JOURNAL_FILE).is_file() for folder in (root, *shard_folders(root))):
        write_manifest(root, table.records()[:table.num_in_manifest])
    found = [_list(folder) for folder in folders]
    table = _drop_incomplete(root, RecordTable(root), found)
    _set_orphans_aside(root, folders, found, table)
    _check_kept(root, table)
    return table


def write_manifest(root: Path, records: Records) -> None:
    """Write a whole manifest, with what the journals held; there is the old one or the new one at any moment."""
    with atomic_file(root / MANIFEST_FILE) as file:
        records.write_lines(file)
    rows = records.rows.copy()
    rows['start'], rows['file'] = np.cumsum(rows['length'], dtype=np.int64) - rows['length'], 0
    store_index(root / MANIFEST_FILE, rows)
    for journal in (folder / JOURNAL_FILE for folder in (root, *shard_folders(root))):
        for path in (journal, index_path(journal)):
            path.unlink(missing_ok=True)


def end_lists(folder: Path) -> None:
    """End the last lines of lists, or cut off what is torn, and clear what else a killed writer left beside them."""
    remove_temporaries(folder)
    for name, describe in ((MANIFEST_FILE, describe_record), (JOURNAL_FILE, describe_record),
                           (TRACE_FILE, describe_trace)):
        if (folder / name).is_file() and not _end_last_line(folder / name, describe) and name == MANIFEST_FILE:
            print_log(f'{folder / name}: the last line was cut off while it was written; its sample is made again.',
                      logger='current', level=logging.WARNING)


def write_kept(root: Path, records: Records) -> list[str]:
    """Write ``kept.txt``, the names of the files of the samples that a filter kept; return them."""
    names = [stem_of(record) for record in records[(records.rows['flags'] & KEPT) > 0]]
    atomic_write(root / KEPT_FILE, ''.join(f'{name}\n' for name in names).encode('utf-8'))
    return names


class _Listing(NamedTuple):
    """The PNG files below a folder (M): paths in it, hashes of these without the suffix, and whether they hold data."""

    paths: list[str]
    names: NDArray[np.uint64]
    filled: NDArray[np.bool_]

    def has(self, names: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether there are files with data by these names."""
        return np.isin(names, self.names[self.filled])


def _list(folder: Path) -> _Listing:
    paths, sizes = [], []
    for place, _, files in os.walk(folder):
        below = '' if place == str(folder) else f'{Path(place).relative_to(folder).as_posix()}/'
        for name in files:
            if name.endswith('.png'):
                path = os.path.join(place, name)
                paths.append(below + name)
                sizes.append(os.stat(path).st_size if os.path.isfile(path) else 0)
    return _Listing(paths, np.array([hash64(path.removesuffix('.png')) for path in paths], np.uint64),
                    np.array(sizes, np.int64) > 0)


def _end_last_line(path: Path, describe: Callable[[str, Path, int], Entry]) -> bool:
    """Add the line break that a whole last line lacks, or cut off a line that is torn and return False."""
    with open(path, 'rb') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b'', b'\n'):
            return True
        file.seek(0)
        for line in file:
            last = line
    try:
        describe(last.decode('utf-8'), path, 0)
    except ValueError:
        os.truncate(path, size - len(last))
        return False
    append_lines(path, '')
    return True


def _drop_incomplete(root: Path, table: RecordTable, found: list[_Listing]) -> RecordTable:
    """Take out of the manifest the records, and the results of filters, whose files are gone or empty."""
    images, masks, labels, weights = found
    rows, records = table.rows, table.records()
    whole = images.has(rows['name']) & masks.has(rows['name'])
    labelled, weighted = ((rows['flags'] & flag) > 0 for flag in (LABELLED, WEIGHTED))
    unfiltered = whole & (labelled & ~labels.has(rows['name']) | weighted & ~weights.has(rows['name']))
    if not whole.all():
        warnings.warn(f'{root}: {(~whole).sum()} of {len(whole)} records have lost their files (the first is '
                      f'{records[int(np.argmin(whole))].id!r}); they leave the manifest and are made again.',
                      stacklevel=4)
    if unfiltered.any():
        warnings.warn(f'{root}: {unfiltered.sum()} of {whole.sum()} filtered labels or weights are gone (the first is '
                      f'that of {records[int(np.argmax(unfiltered))].id!r}); these samples count as not filtered.',
                      stacklevel=4)
        append_lines(root / JOURNAL_FILE, *(replace(record, filter=None).to_json() for record in records[unfiltered]))
        records = RecordTable(root).records()
    if not unfiltered.any() and whole.all():
        return table
    in_manifest = np.arange(len(rows)) < table.num_in_manifest
    for path in (folder / MANIFEST_FILE for folder in shard_folders(root)):
        if path.is_file():
            own = table.records().are_in(path)
            with atomic_file(path) as file:
                records[whole & own].write_lines(file)
    write_manifest(root, records[whole & in_manifest])
    return RecordTable(root)


def _set_orphans_aside(root: Path, folders: list[Path], found: list[_Listing], table: RecordTable) -> None:
    rows = table.rows
    flags = rows['flags']
    known = (rows['name'], rows['name'], rows['name'][(flags & LABELLED) > 0], rows['name'][(flags & WEIGHTED) > 0])
    moved, foreign = [], []
    for folder, listing, names in zip(folders, found, known):
        unknown = np.flatnonzero(~np.isin(listing.names, names))
        for path in sorted(folder / listing.paths[number] for number in unknown):
            if folder.is_symlink() or path.is_symlink() or not _POOL_NAME.fullmatch(path.name):
                foreign.append(path)
                continue
            target = root / ORPHAN_FOLDER / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target = target.with_name(f'{target.stem}-{secrets.token_hex(4)}.png')
            os.replace(path, target)
            moved.append(path)
    if moved:
        print_log(f'{root}: {len(moved)} files without a line in {MANIFEST_FILE} moved to {ORPHAN_FOLDER}/ (the first '
                  f'is {moved[0].relative_to(root)}); delete that folder if nothing in it is missed.', logger='current',
                  level=logging.WARNING)
    if foreign:
        print_log(f'{root}: {len(foreign)} files are none of the pool and stay as they are (the first is '
                  f'{foreign[0].relative_to(root)}).', logger='current', level=logging.WARNING)


def _check_kept(root: Path, table: RecordTable) -> None:
    """Remove a ``kept.txt`` that names what is not kept; the filter writes it again."""
    path = root / KEPT_FILE
    if path.is_file():
        listed = np.array([hash64(name) for name in path.read_text(encoding='utf-8').split()], np.uint64)
        if not np.isin(listed, table.rows['name'][(table.rows['flags'] & KEPT) > 0]).all():
            path.unlink()
