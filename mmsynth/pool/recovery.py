"""What the next writer does with a pool whose last one may have ended at any moment."""
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from mmsynth.pool.manifest import IMAGE_FOLDER, MANIFEST_FILE, MASK_FOLDER, PoolRecord, complete_length, parse_manifest
from mmsynth.utils.files import atomic_write, remove_temporaries


def recover(root: Path) -> list[PoolRecord]:
    """Bring files and manifest of a pool that a writer may have left at any moment to agree; needs the lock.

    A torn last line is cut off; temporary files, and files without a line, are removed; lines without files leave the
    manifest with a warning.

    Raises:
        ValueError: If the manifest is damaged, or is missing while there are images.
    """
    folders = [root / IMAGE_FOLDER, root / MASK_FOLDER]
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
    known = {root / path for record in records for path in (record.image, record.mask)}
    for folder in folders:
        for path in folder.glob('*.png'):
            if path not in known:
                path.unlink()
    return records


def _drop_incomplete(root: Path, records: list[PoolRecord]) -> list[PoolRecord]:
    """Take records out of the manifest whose files are gone or empty."""
    complete = [record for record in records
                if all(_has_content(root / path) for path in (record.image, record.mask))]
    if len(complete) < len(records):
        kept = {record.id for record in complete}
        lost = next(record for record in records if record.id not in kept)
        warnings.warn(f'{root}: {len(records) - len(complete)} of {len(records)} records have lost their files (the '
                      f'first is {lost.id!r}); they leave the manifest and are made again.', stacklevel=4)
        write_manifest(root / MANIFEST_FILE, complete)
    return complete


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def write_manifest(path: Path, records: Iterable[PoolRecord]) -> None:
    """Write a whole manifest; there is the old one or the new one at any moment."""
    atomic_write(path, ''.join(f'{record.to_json()}\n' for record in records).encode('utf-8'))
