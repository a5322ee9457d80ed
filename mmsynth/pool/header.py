"""``pool.json``: what all samples of one pool have in common, and the folder that it makes a pool."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from mmsynth.pool.manifest import IMAGE_FOLDER, MASK_FOLDER, plain_json
from mmsynth.utils.files import TEMPORARY_PREFIX, FolderLock, atomic_write
from mmsynth.utils.labels import IGNORE_INDEX

HEADER_FILE = 'pool.json'
SETUP_LOCK = '.shards.lock'  # held while one of several writers joins or leaves
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PoolHeader:
    """The header of a pool.

    Args:
        settings: Everything that decides what a sample looks like, JSON values.
        classes: Names, at most 255 (255 in a mask means unlabelled).
        palette: One RGB colour in [0, 255] per class.
        format_version: Of the layout on disk.

    Raises:
        ValueError: If a field breaks its rule.
    """
    settings: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f'`format_version` must be {FORMAT_VERSION}, got {self.format_version!r}: the pool was '
                             f'written by another version of mmsynth. Read it with that one, or make it anew.')
        if not isinstance(self.settings, Mapping):
            raise ValueError(f'`settings` must be a dict, got {self.settings!r:.80}')
        try:
            object.__setattr__(self, 'settings', plain_json(self.settings))
        except ValueError as error:
            raise ValueError(f'`settings` {error}') from error
        object.__setattr__(self, 'classes', _checked_classes(self.classes))
        object.__setattr__(self, 'palette', _checked_palette(self.palette, len(self.classes)))

    @classmethod
    def of(cls, settings: Mapping[str, Any], classes: Sequence[str], palette: Sequence[Sequence[int]]) -> 'PoolHeader':
        """The header of what a user gives; __post_init__ checks it and makes it what the fields say."""
        given: Any = (settings, classes, palette)
        return cls(*given)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + '\n'

    @classmethod
    def read(cls, path: Path) -> 'PoolHeader':
        """Read ``pool.json``.

        Raises:
            ValueError: If it is not a header of this version; names the file.
        """
        try:
            values = json.loads(path.read_text(encoding='utf-8'))
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f'{path} is not the header of a pool: {error}') from error

    def differences(self, other: 'PoolHeader') -> list[str]:
        """One line per field in which the two headers differ, own value first."""
        own, others = flatten(asdict(self)), flatten(asdict(other))
        return [f'{name}: {_shown(own, name)} there, {_shown(others, name)} here' for name in {**own, **others}
                if name not in own or name not in others or own[name] != others[name]]


def check_is_pool_or_empty(root: Path) -> None:
    """Raise ValueError for a folder with other files; a lock or temporary file is what a killed ``create`` left."""
    if root.exists() and not root.is_dir():
        raise ValueError(f'{root} must be a folder, it is a file. Choose another --out-dir.')
    if not root.exists() or (root / HEADER_FILE).is_file():
        return
    others = [path.name for path in root.iterdir()
                 if path.name not in (FolderLock.FILE, SETUP_LOCK) and not path.name.startswith(TEMPORARY_PREFIX)]
    # The header may have been written since: a second writer started in the same moment.
    if others and not (root / HEADER_FILE).is_file():
        raise ValueError(f'{root} is not empty and not a pool (it has no {HEADER_FILE}, but {sorted(others)[0]!r}). '
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


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested dicts as one, with dotted names; lists stay values, and so do empty dicts."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else '(not set)'


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f'`classes` must be a list of names, got {classes!r:.80}')
    if not 1 <= len(classes) <= IGNORE_INDEX:
        raise ValueError(f'`classes` must hold 1 to {IGNORE_INDEX} names, got {len(classes)}')
    return tuple(classes)


def _checked_palette(palette: Sequence[Sequence[int]], num_classes: int) -> tuple[tuple[int, int, int], ...]:
    if len(palette) != num_classes:
        raise ValueError(f'`palette` must hold one colour per class ({num_classes}), got {len(palette)}')
    for index, color in enumerate(palette):
        if len(color) != 3 or not all(isinstance(part, Integral) and 0 <= part <= 255 for part in color):
            raise ValueError(f'`palette` must hold RGB colours in [0, 255], got {color!r} for class {index}')
    return tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
