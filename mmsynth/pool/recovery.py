"""What the next writer does with a pool whose last one may have ended at any moment."""
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mmsynth.pool.manifest import (
    FILTERED_FOLDER,
    IMAGE_FOLDER,
    MANIFEST_FILE,
    MASK_FOLDER,
    WEIGHT_FOLDER,
    PoolRecord,
    complete_length,
    parse_manifest,
)
from mmsynth.utils.files import atomic_write, remove_temporaries

KEPT_FILE = 'kept.txt'
_FOLDERS = (IMAGE_FOLDER, MASK_FOLDER, FILTERED_FOLDER, WEIGHT_FOLDER)


def recover(root: Path) -> list[PoolRecord]:
    """Bring files and manifest of a pool that a writer may have left at any moment to agree; needs the lock.

    A torn last line is cut off; temporary files, and files without a line, are removed; lines without files leave the
    manifest with a warning. A line whose filter's files are gone stays, without the filter's result. ``kept.txt`` goes
    if it names a sample that is not kept any more.

    Raises:
        ValueError: If the manifest is damaged, or is missing while there are images.
    """
    folders = [root / name for name in _FOLDERS]
    for folder in (root, *folders):
        remove_temporaries(folder)
    manifest = root / MANIFEST_FILE
    if not manifest.is_file():
        if any(path for folder in folders for path in folder.glob('*.png')):
            raise ValueError(f'{root} has images but no {MANIFEST_FILE}, so nobody knows what they are. Restore that '
                             f'file, choose another --out-dir, or delete the folder.')
        atomic_write(manifest, b'')
    os.truncate(manifest, complete_length(manifest.read_bytes()))
    records = _drop_incomplete(root, parse_manifest(manifest))
    known = {root / path for record in records for path in record.files}
    for folder in folders:
        for path in folder.glob('*.png'):
            if path not in known:
                path.unlink()
    _check_kept(root, records)
    return records


def write_kept(root: Path, records: Iterable[PoolRecord]) -> list[str]:
    """Write ``kept.txt``; the names in it."""
    names = _kept_names(records)
    atomic_write(root / KEPT_FILE, ''.join(f'{name}\n' for name in names).encode('utf-8'))
    return names


def _kept_names(records: Iterable[PoolRecord]) -> list[str]:
    """File stems of the samples that a filter kept."""
    return [Path(record.image).stem for record in records if record.filter and record.filter.get('keep')]


def write_manifest(path: Path, records: Iterable[PoolRecord]) -> None:
    """Write a whole manifest; there is the old one or the new one at any moment."""
    atomic_write(path, ''.join(f'{record.to_json()}\n' for record in records).encode('utf-8'))


def replace_lines(path: Path, records: dict[str, PoolRecord], changed: Iterable[str]) -> None:
    """Write a manifest in which only some lines are new: those of other records are copied, not made again.

    Args:
        path: The manifest, with one line per record in the order of ``records``.
        records: All records by id.
        changed: Ids whose lines are new.
    """
    lines = path.read_bytes().split(b'\n')
    assert len(lines) == len(records) + 1, f'{path} has {len(lines) - 1} lines for {len(records)} records'
    places = {id: place for place, id in enumerate(records)}
    for id in changed:
        lines[places[id]] = records[id].to_json().encode('utf-8')
    atomic_write(path, b'\n'.join(lines))


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
