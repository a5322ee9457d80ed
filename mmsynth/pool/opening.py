"""What is checked, and made, when a folder is opened as a pool for writing."""
from pathlib import Path

from mmsynth.pool.header import HEADER_FILE, PoolHeader
from mmsynth.pool.manifest import IMAGE_FOLDER, MASK_FOLDER
from mmsynth.utils.files import TEMPORARY_PREFIX, FolderLock, atomic_write


def check_is_pool_or_empty(root: Path) -> None:
    """Refuse a folder that somebody else fills. A lock or temporary file is what a killed ``create`` left."""
    if root.exists() and not root.is_dir():
        raise ValueError(f'{root} must be a folder, it is a file. Choose another --out-dir.')
    if not root.exists() or (root / HEADER_FILE).is_file():
        return
    strangers = [path.name for path in root.iterdir()
                 if path.name != FolderLock.FILE and not path.name.startswith(TEMPORARY_PREFIX)]
    # The header may have been written since: a second writer started in the same moment.
    if strangers and not (root / HEADER_FILE).is_file():
        raise ValueError(f'{root} is not empty and not a pool (it has no {HEADER_FILE}, but {sorted(strangers)[0]!r}). '
                         f'Choose another --out-dir, or empty this folder.')


def open_header(root: Path, header: PoolHeader) -> None:
    """Write the header, or hold an existing one against it; make the layout."""
    path = root / HEADER_FILE
    if not path.is_file():
        atomic_write(path, header.to_json().encode('utf-8'))
    differences = PoolHeader.read(path).differences(header)
    if differences:
        listed = '\n  '.join(differences)
        raise ValueError(f'{root} holds a pool made with other settings:\n  {listed}\n'
                         f'Choose another --out-dir, delete the folder, or go back to its settings.')
    for name in (IMAGE_FOLDER, MASK_FOLDER):
        (root / name).mkdir(exist_ok=True)


def read_header(root: Path) -> PoolHeader:
    """The header of an existing pool.

    Raises:
        ValueError: If there is none.
    """
    if not (root / HEADER_FILE).is_file():
        raise ValueError(f'{root} is not a pool (it has no {HEADER_FILE}). Give the folder of a synthesis run.')
    return PoolHeader.read(root / HEADER_FILE)
