"""Class tables: which value or colour of a mask file is which class, and masks of any kind → class ids.

Legend: H W pixels, K classes.
"""
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsynth.utils.labels import IGNORE_INDEX

IGNORE = 'ignore'  # in the place of a class name
_UNKNOWN = IGNORE_INDEX - 1
_NUM_VALUES = 1 << 16

Colour = tuple[int, int, int]
_HEX = re.compile(r'#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})')
_TRIPLE = re.compile(r'\(?\s*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)\s*\)?')
_HELP = ('A class table is a JSON object {"VALUE": "CLASS", ...}, a CSV file with the columns value,class or '
         'red,green,blue,class, or a meta.json with "classes"; the class "ignore" is no class. Colours in JSON are '
         '"#3C1098" or "60,16,152".')


@dataclass(frozen=True)
class ClassTable:
    """The classes of a set, and what stands for each in its mask files: values, or colours.

    Attributes:
        classes: The K names, in the order of their ids.
        palette: A colour for each.
        values: Value in the files → class id, or 255 for no label.
        colours: Colour in the files, RGB → class id, or 255. Either this or ``values``.
        tolerance: A colour counts as the one in the table that differs by at most this in each channel.
    """

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    values: Mapping[int, int] | None = None
    colours: Mapping[Colour, int] | None = None
    tolerance: int = 0

    def __post_init__(self) -> None:
        assert (self.values is None) != (self.colours is None) and len(self.palette) == len(self.classes)
        if not 1 <= len(self.classes) < _UNKNOWN:
            raise ValueError(f'a class table must name 1 to {_UNKNOWN - 1} classes, got {len(self.classes)}.')
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f'a class table names a class twice: {", ".join(self.classes)}.')
        wrong = [value for value in self.values or () if not 0 <= value < _NUM_VALUES]
        if wrong:
            raise ValueError(f'values of a class table must be in 0 … {_NUM_VALUES - 1}, got {wrong[0]}.')
        if self.tolerance and self.colours is None:
            raise ValueError(f'`colour_tolerance` {self.tolerance} has no effect: the class table names values; leave '
                             'it out.')
        if not 0 <= self.tolerance <= 127:
            raise ValueError(f'`colour_tolerance` must be in 0 … 127, got {self.tolerance}.')

    @classmethod
    def of_ids(cls, classes: Sequence[str], palette: Sequence[Colour], first: int = 0,
               ignored: Iterable[int] = (IGNORE_INDEX, )) -> 'ClassTable':
        """The table of files that hold ``first``, ``first + 1`` … in the order of the classes."""
        values = dict.fromkeys(ignored, IGNORE_INDEX) | {first + index: index for index in range(len(classes))}
        return cls(tuple(classes), tuple(palette), values=values)

    @classmethod
    def of_palette(cls, classes: Sequence[str], palette: Sequence[Colour], ignored: Iterable[Colour] = (),
                   tolerance: int = 0) -> 'ClassTable':
        """The table of files that hold the colours of the palette."""
        colours = dict.fromkeys(ignored, IGNORE_INDEX) | {colour: index for index, colour in enumerate(palette)}
        return cls(tuple(classes), tuple(palette), colours=colours, tolerance=tolerance)

    def encode(self, raw: NDArray[np.generic], source: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Class ids of a mask as it stands in its file.

        Args:
            raw: (H, W, B): B = 1 for values, or B ≥ 3 for colours (RGB; a fourth band is left alone).
            source: The file, for messages.

        Returns:
            ids (H, W), uint8, 0 … K - 1 or 255; unknown (H, W): where the table has no such value. The id there is 255.

        Raises:
            ValueError: If the file has colours and the table values, or the other way round.
        """
        codes = self._codes(raw, source)
        if self.values is None:
            ids = self._lookup[codes]
        else:
            inside = (codes >= 0) & (codes < _NUM_VALUES)
            ids = np.where(inside, self._lookup[np.where(inside, codes, 0)], np.uint8(_UNKNOWN))
        unknown = ids == _UNKNOWN
        return np.where(unknown, np.uint8(IGNORE_INDEX), ids), unknown

    def unknown_values(self, raw: NDArray[np.generic], unknown: NDArray[np.bool_], source: str) -> Counter[str]:
        """How many pixels have which unknown value, as the table would write it."""
        values, counts = np.unique(self._codes(raw, source)[unknown], return_counts=True)
        names = map(str, values.tolist()) if self.values is not None else (
            '#{:02X}{:02X}{:02X}'.format(*_unpack(value)) for value in values.tolist())
        return Counter(dict(zip(names, counts.tolist())))

    def _codes(self, raw: NDArray[np.generic], source: str) -> NDArray[np.integer]:
        """Values, or colours as one number (H, W)."""
        if raw.dtype.kind == 'f' and not np.array_equal(raw, np.trunc(raw)):
            raise ValueError(f'{source} holds fractions, so it is no mask; give the file of class values.')
        bands = raw.shape[2]
        if self.values is not None:
            if bands > 1 and not (raw[..., :3] == raw[..., :1]).all():
                raise ValueError(f'{source} has {bands} bands of colours, but the class table names values. Give a '
                                 'table of colours, such as {"#3C1098": "building"}.')
            return raw[..., 0].astype(np.int64)
        if bands < 3:
            raise ValueError(f'{source} has one band of values, but the class table names colours. Give a table of '
                             'values, such as {"1": "building"}.')
        if raw.dtype != np.uint8:
            raise ValueError(f'{source} has colours of {raw.dtype}; masks of colours must have 8 bits.')
        red, green, blue = (raw[..., band].astype(np.int32) for band in range(3))
        return red << 16 | green << 8 | blue

    @cached_property
    def _lookup(self) -> NDArray[np.uint8]:
        """Code → id, or _UNKNOWN."""
        if self.values is not None:
            table = np.full(_NUM_VALUES, _UNKNOWN, np.uint8)
            for value, index in self.values.items():
                table[value] = index
            return table
        assert self.colours is not None
        table = np.full((256, 256, 256), _UNKNOWN, np.uint8)
        for colour, index in self.colours.items():
            cube = table[tuple(slice(max(0, x - self.tolerance), x + self.tolerance + 1) for x in colour)]
            if ((cube != _UNKNOWN) & (cube != index)).any():
                raise ValueError(f'`colour_tolerance` {self.tolerance} makes {colour} and another colour of the class '
                                 'table the same; give a smaller one.')
            cube[...] = index
        return table.reshape(-1)


def read_class_table(path: str | Path, tolerance: int = 0) -> ClassTable:
    """Read a class table: JSON or CSV, see docs/en/dataset_prepare.md.

    Ids follow the order in which the classes are first named. Several values may be one class.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no class table; the message names the line or entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'`class_table`: there is no file {path}. {_HELP}')
    text = path.read_text(encoding='utf-8-sig')
    try:
        if path.suffix.lower() == '.csv':
            return _from_rows(_csv_rows(text), tolerance)
        return _from_json(_load_json(text), tolerance)
    except ValueError as error:
        raise ValueError(f'`class_table` {path}: {error} {_HELP}') from error


def _load_json(text: str) -> Any:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ValueError(f'{twice[0]!r} stands there twice.')
        return dict(pairs)
    return json.loads(text, object_pairs_hook=refuse_twice)


def _from_json(content: Any, tolerance: int) -> ClassTable:
    if not isinstance(content, dict) or not content:
        raise ValueError(f'must be an object with entries, got {content!r:.60}.')
    if isinstance(content.get('classes'), list):
        classes = content['classes']
        palette = content.get('palette') or default_palette(len(classes))
        if len(palette) != len(classes):
            raise ValueError(f'"palette" has {len(palette)} colours for {len(classes)} classes.')
        table = ClassTable.of_ids(classes, [tuple(colour) for colour in palette],
                                  ignored=(content.get('ignore_index', IGNORE_INDEX), ))
        return replace(table, tolerance=tolerance)
    return _from_rows([(_parse_key(key), None, name) for key, name in content.items()], tolerance)


def _csv_rows(text: str) -> list[tuple[int | Colour, Colour | None, str]]:
    """(value or colour, colour to show, class) of every line."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    has_colour = {'red', 'green', 'blue'} <= columns.keys()
    if 'class' not in columns or not ('value' in columns or has_colour):
        raise ValueError(f'its columns are {", ".join(columns) or "none"}.')
    rows: list[tuple[int | Colour, Colour | None, str]] = []
    for number, line in enumerate(reader, start=2):
        try:
            colour = (int(line[columns['red']]), int(line[columns['green']]),
                      int(line[columns['blue']])) if has_colour else None
            key = int(line[columns['value']]) if 'value' in columns else colour
        except (TypeError, ValueError) as error:
            raise ValueError(f'line {number} has no whole number where one must stand ({error}).') from error
        assert key is not None  # one of the two is there
        rows.append((key, colour, line[columns['class']]))
    return rows


def _parse_key(key: str) -> int | Colour:
    if re.fullmatch(r'\s*\d+\s*', key):
        return int(key)
    match = _HEX.fullmatch(key.strip())
    if match:
        red, green, blue = (int(part, 16) for part in match.groups())
        return red, green, blue
    match = _TRIPLE.fullmatch(key.strip())
    if match:
        red, green, blue = map(int, match.groups())
        return red, green, blue
    raise ValueError(f'{key!r} is neither a value nor a colour.')


def _from_rows(rows: Sequence[tuple[int | Colour, Colour | None, str]], tolerance: int) -> ClassTable:
    if not rows:
        raise ValueError('has no entries.')
    known: dict[int | Colour, int] = {}
    shown: list[Colour | None] = []
    classes: list[str] = []
    for key, colour, name in rows:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f'{key} has no class name, got {name!r}.')
        if key in known:
            raise ValueError(f'{key} stands there twice.')
        if isinstance(key, tuple):
            colour = key
        if colour is not None and not all(0 <= part <= 255 for part in colour):
            raise ValueError(f'{colour} is no colour of three numbers in 0 … 255.')
        name = name.strip()
        if name.lower() == IGNORE:
            known[key] = IGNORE_INDEX
            continue
        if name not in classes:
            classes.append(name)
            shown.append(colour)
        known[key] = classes.index(name)
    if not classes:
        raise ValueError('names no class, only what to ignore.')
    if len({isinstance(key, tuple) for key in known}) > 1:
        raise ValueError('names values and colours; the masks have one or the other.')
    palette = tuple(colour or other for colour, other in zip(shown, default_palette(len(classes))))
    values = {key: index for key, index in known.items() if isinstance(key, int)}
    colours = {key: index for key, index in known.items() if isinstance(key, tuple)}
    return ClassTable(tuple(classes), palette, values or None, colours or None, tolerance)


def default_palette(count: int) -> list[Colour]:
    """Colours that differ, for classes that were given none."""
    return [(37 * k % 256, 101 * k % 256, 173 * k % 256) for k in range(1, count + 1)]


def _unpack(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255
