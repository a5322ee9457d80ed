"""What the next writer does with a pool whose last one may have ended at any moment."""
import logging
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mmengine.logging import print_log

from mmsynth.pool.manifest import (
    FILTERED_FOLDER,
    IMAGE_FOLDER,
    JOURNAL_FILE,
    MANIFEST_FILE,
    MASK_FOLDER,
    WEIGHT_FOLDER,
    PoolRecord,
    complete_length,
    is_record,
    parse_manifest,
    read_journal,
)
from mmsynth.pool.rounds import ROUNDS_FILE
from mmsynth.utils.files import append_lines, atomic_write, remove_temporaries

KEPT_FILE = 'kept.txt'
SELECTION_FILES = ('selected.txt', 'images_per_mask.json')  # made from what a filter found
ORPHAN_FOLDER = '.orphans'
_POOL_NAME = re.compile(r'([A-Za-z0-9_-]+-)?[0-9a-f]{12}\.png')  # of utils.files.file_name
_FOLDERS = (IMAGE_FOLDER, MASK_FOLDER, FILTERED_FOLDER, WEIGHT_FOLDER)


def recover(root: Path) -> list[PoolRecord]:
    """Bring files and manifest of a pool that a writer may have left at any moment to agree; needs the lock.

    A torn last line is cut off, and the journal merged. Temporary files are removed. Of files without a line, those
    that a pool could have written move to ``.orphans/``: a killed writer leaves such files, and so does a manifest
    that was restored from an older copy. Other files stay, and so does everything behind a symbolic link. Lines
    without files leave the manifest with a warning. A line whose filter's files are gone stays, without the filter's
    result. ``kept.txt`` goes if it names a sample that is not kept any more.

    Raises:
        ValueError: If the manifest is damaged, or is missing or empty while there are images.
    """
    folders = [root / name for name in _FOLDERS]
    for folder in (root, *folders):
        if folder == root or not folder.is_symlink():
            remove_temporaries(folder)
    manifest = root / MANIFEST_FILE
    if not manifest.is_file():
        if any(path for folder in folders for path in folder.glob('*.png')):
            raise ValueError(f'{root} has images but no {MANIFEST_FILE}, so nobody knows what they are. Restore that '
                             f'file, choose another --out-dir, or delete the folder.')
        atomic_write(manifest, b'')
    _end_last_line(manifest)
    records = list(parse_manifest(manifest))
    if not records and not (root / ROUNDS_FILE).is_file():
        count = sum(1 for path in folders[0].glob('*.png') if _POOL_NAME.fullmatch(path.name))
        if count > 1:  # a killed writer leaves one
            raise ValueError(f'{root} has {count} images and an empty {MANIFEST_FILE}, so nobody knows what they are. '
                             'Restore that file, choose another --out-dir, or delete the folder.')
    if (root / JOURNAL_FILE).is_file():
        newer = read_journal(root)
        records = [newer.get(record.id, record) for record in records]
        write_manifest(manifest, records)
        (root / JOURNAL_FILE).unlink()
    records = _drop_incomplete(root, records)
    _set_orphans_aside(root, folders, records)
    _check_kept(root, records)
    return records


def _end_last_line(manifest: Path) -> None:
    """Add the line break that a whole last line lacks, or cut off a line that is torn."""
    with open(manifest, 'rb') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b'', b'\n'):
            return
    data = manifest.read_bytes()
    length = complete_length(data)
    if is_record(data[length:]):
        append_lines(manifest, '')
        return
    print_log(f'{manifest}: the last line was cut off while it was written; its sample is made again.',
              logger='current', level=logging.WARNING)
    os.truncate(manifest, length)


def _set_orphans_aside(root: Path, folders: list[Path], records: list[PoolRecord]) -> None:
    known = {root / path for record in records for path in record.files}
    moved, foreign = [], []
    for folder in folders:
        unknown = [path for path in sorted(folder.glob('*.png')) if path not in known]
        if folder.is_symlink():
            foreign += unknown
            continue
        for path in unknown:
            if path.is_symlink() or not _POOL_NAME.fullmatch(path.name):
                foreign.append(path)
                continue
            target = root / ORPHAN_FOLDER / folder.name / path.name
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


def write_kept(root: Path, records: Iterable[PoolRecord]) -> list[str]:
    """Write ``kept.txt``; return the names in it."""
    names = _kept_names(records)
    atomic_write(root / KEPT_FILE, ''.join(f'{name}\n' for name in names).encode('utf-8'))
    return names


def _kept_names(records: Iterable[PoolRecord]) -> list[str]:
    """File stems of the samples that a filter kept."""
    return [Path(record.image).stem for record in records if record.filter and record.filter.get('keep')]


def write_manifest(path: Path, records: Iterable[PoolRecord]) -> None:
    """Write a whole manifest; there is the old one or the new one at any moment."""
    atomic_write(path, ''.join(f'{record.to_json()}\n' for record in records).encode('utf-8'))


def _drop_incomplete(root: Path, records: list[PoolRecord]) -> list[PoolRecord]:
    """Take out of the manifest the records, and the results of filters, whose files are gone or empty."""
    complete = _whole(root, records, lambda record: (record.image, record.mask))
    if len(complete) < len(records):
        kept = {record.id for record in complete}
        lost = next(record for record in records if record.id not in kept)
        warnings.warn(f'{root}: {len(records) - len(complete)} of {len(records)} records have lost their files (the '
                      f'first is {lost.id!r}); they leave the manifest and are made again.', stacklevel=4)
    filtered = {record.id for record in _whole(root, complete, lambda record: record.filter_files)}
    lost_filters = [record.id for record in complete if record.id not in filtered]
    if lost_filters:
        warnings.warn(f'{root}: {len(lost_filters)} of {len(complete)} filtered labels or weights are gone (the first '
                      f'is that of {lost_filters[0]!r}); these samples count as not filtered.', stacklevel=4)
        complete = [record if record.id in filtered else replace(record, filter=None) for record in complete]
    if complete != records:
        write_manifest(root / MANIFEST_FILE, complete)
    return complete


def _whole(root: Path, records: list[PoolRecord], files: Callable[[PoolRecord], tuple[str, ...]]) -> list[PoolRecord]:
    return [record for record in records if all(_has_content(root / path) for path in files(record))]


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _check_kept(root: Path, records: list[PoolRecord]) -> None:
    """Remove a ``kept.txt`` that names what is not kept; the filter writes it again."""
    path = root / KEPT_FILE
    if path.is_file() and set(path.read_text(encoding='utf-8').split()) - set(_kept_names(records)):
        path.unlink()
