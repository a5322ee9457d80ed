"""The pool's manifest: one JSON object per line, one line per synthetic sample.

What guidance did at each step is long, and asked for one sample at a time: it stands in a file of its own, with lines
``{"id": …, "trace": […]}``. Pools of earlier versions have it in the manifest.

A manifest is a file from outside: every line is checked in full, and a record cannot name a file outside its pool.
"""
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

MANIFEST_FILE = 'manifest.jsonl'
TRACE_FILE = 'traces.jsonl'
JOURNAL_FILE = 'manifest.journal.jsonl'  # records that take the place of those of the manifest
IMAGE_FOLDER = 'img_dir'
MASK_FOLDER = 'ann_dir'
FILTERED_FOLDER = 'filtered'
WEIGHT_FOLDER = 'weights'
_FILE_RULES = {folder: re.compile(rf'{folder}/([0-9]{{3,6}}/)?[A-Za-z0-9_][A-Za-z0-9._-]*\.png')
               for folder in (IMAGE_FOLDER, MASK_FOLDER, FILTERED_FOLDER, WEIGHT_FOLDER)}
_FILTER_FILES = {'label': FILTERED_FOLDER, 'weight': WEIGHT_FOLDER}
_GENERATOR_KEYS = ('type', 'config_sha256', 'weights_sha256')
_GUIDANCE_KEYS = ('name', 'trace')


@dataclass(frozen=True)
class PoolRecord:
    """One synthetic sample: its two files, and everything needed to say where it came from.

    The dictionaries are copied and reduced to plain JSON values on construction: numpy scalars become Python numbers,
    and numbers that JSON does not have (NaN, infinities) become None. So a record equals its own round trip.

    Args:
        id: Unique in its pool, not empty.
        image: ``img_dir/NAME.png``, RGB.
        mask: ``ann_dir/NAME.png`` with the same NAME, 8-bit class indices.
        source_mask: The mask that it was generated for, as its dataset calls it.
        prompt: The text the generator was given, may be empty.
        reference: The style image, or None.
        seed: The sample's own seed, not negative.
        generator: ``type`` and ``config_sha256`` (str), ``weights_sha256`` (str, None for weights without a file).
        guidance: ``name`` (str), and in pools of earlier versions ``trace``, a list with one dict of numbers per guided
            step, which :meth:`Pool.load_trace` reads of any pool; None without guidance.
        filter: What a filter found, a JSON object; None if none ran. ``label`` and ``weight`` in it, if they are not
            null, are its files: ``filtered/NAME.png`` and ``weights/NAME.png`` with the NAME of the image.
        mask_origin: How its mask was made of ``source_mask``, any JSON object; None for the mask as it is.

    Raises:
        ValueError: If a field breaks its rule; all broken fields are named at once.
    """
    id: str
    image: str
    mask: str
    source_mask: str
    prompt: str
    reference: str | None
    seed: int
    generator: dict[str, Any]
    guidance: dict[str, Any] | None
    filter: dict[str, Any] | None
    mask_origin: dict[str, Any] | None

    def __post_init__(self) -> None:
        problems = []
        for name, convert in _CONVERTERS.items():
            try:
                object.__setattr__(self, name, convert(getattr(self, name)))
            except ValueError as error:
                problems.append(f'`{name}` {error}')
        if not problems and len({path.partition('/')[2] for path in self.files}) > 1:
            problems.append('`image` and `mask`, and the files of `filter`, must have the same file name, got '
                            + ' and '.join(map(repr, self.files)))
        if problems:
            raise ValueError('; '.join(problems))

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the sample: image and mask, then those that a filter added."""
        return self.image, self.mask, *self.filter_files

    @property
    def filter_files(self) -> tuple[str, ...]:
        """What a filter added: the filtered label and the weight map, as far as there are any."""
        entry = self.filter or {}
        return tuple(entry[key] for key in _FILTER_FILES if entry.get(key) is not None)

    def split_trace(self) -> tuple['PoolRecord', list[dict[str, Any]]]:
        """The record as the manifest has it, and the trace of its guidance."""
        if not self.guidance or 'trace' not in self.guidance:
            return self, []
        return replace(self, guidance=dict(name=self.guidance['name'])), self.guidance['trace']

    def with_filter_files(self, *, weighted: bool) -> 'PoolRecord':
        """The record with its ``filter`` naming the files of the result: the label, and with weights their map.

        Raises:
            ValueError: If it has no ``filter``.
        """
        if self.filter is None:
            raise ValueError(f'sample {self.id!r}: a filtered label needs `filter`, what the filter found.')
        name = self.image.removeprefix(f'{IMAGE_FOLDER}/')
        return replace(self, filter=self.filter | dict(
            label=f'{FILTERED_FOLDER}/{name}', weight=f'{WEIGHT_FOLDER}/{name}' if weighted else None))

    def to_json(self) -> str:
        """The record as one line of strict JSON in ASCII, without the line break."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str, *, source: str = 'record', line_number: int = 1) -> 'PoolRecord':
        """Read one line.

        Args:
            line: One JSON object.
            source: The file's name, for messages.
            line_number: The line's number in it, counted from 1, for messages.

        Raises:
            ValueError: If the line is not strict JSON, or a field is missing, unknown or wrong.
        """
        try:
            return cls(**_exact_keys(strict_json(line), tuple(field.name for field in fields(cls))))
        except (ValueError, RecursionError) as error:
            raise ValueError(f'{source}, line {line_number}: {error}. Correct the line or delete it; a deleted record '
                             f'is made again.') from error


def complete_length(data: bytes) -> int:
    """Number of bytes up to and with the last line break."""
    return data.rfind(b'\n') + 1


def plain_json(value: Any) -> Any:
    """Copy ``value`` as plain JSON values; non-finite numbers become None.

    Raises:
        ValueError: If something in it has no place in JSON, such as an array or a key that is no string.
    """
    if type(value) in (str, int, bool, type(None)) or type(value) is float and math.isfinite(value):
        return value  # most of what comes, without the slow questions below
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f'must have strings as keys, got {wrong[0]!r}')
        return {key: plain_json(item) for key, item in value.items()}
    raise ValueError(f'must hold numbers, strings, lists and dicts only, got a {type(value).__name__}')


def strict_json(text: str) -> Any:
    """Parse JSON without the extensions of Python's parser.

    Raises:
        ValueError: If it is no JSON, or has NaN, an infinity or a repeated key.
        RecursionError: If it is nested too deeply.
    """
    def refuse(constant: str) -> None:
        raise ValueError(f'{constant} is not JSON')

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError(f'a key is repeated among {[key for key, _ in pairs]!r:.80}')
        return values

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def _exact_keys(value: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """``value`` if it is a mapping with exactly these keys."""
    if not isinstance(value, Mapping):
        raise ValueError(f'must be an object with {", ".join(keys)}, got {value!r:.80}')
    missing, unknown = [key for key in keys if key not in value], [key for key in value if key not in keys]
    if missing or unknown:
        found = [f'{kind} {", ".join(map(repr, names))}' for kind, names in (('missing', missing),
                                                                            ('unknown', unknown)) if names]
        raise ValueError(f'must have exactly the keys {", ".join(keys)}: {"; ".join(found)}')
    return dict(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'must be a string, got {value!r:.80}')
    return str(value)


def _filled_string(value: Any) -> str:
    if not _string(value):
        raise ValueError('must not be empty')
    return str(value)


def _optional_string(value: Any) -> str | None:
    return None if value is None else _string(value)


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f'must be an integer that is not negative, got {value!r:.80}')
    return int(value)


def _file_in(folder: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or not _FILE_RULES[folder].fullmatch(value):
            raise ValueError(f'must be {folder}/NAME.png inside the pool, or {folder}/000/NAME.png, NAME of letters, '
                             f'digits, "_", "-" and ".", got {value!r:.200}')
        return value
    return convert


def _generator(value: Any) -> dict[str, Any]:
    value = _exact_keys(value, _GENERATOR_KEYS)
    for key in _GENERATOR_KEYS:
        if not isinstance(value[key], str) and not (key == 'weights_sha256' and value[key] is None):
            raise ValueError(f'must have a string as {key!r}, got {value[key]!r:.80}')
    return value


def _guidance(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or 'trace' in value:
        value = _exact_keys(value, _GUIDANCE_KEYS)
    else:
        value = _exact_keys(value, _GUIDANCE_KEYS[:1])
    value = plain_json(value)
    if not isinstance(value['name'], str):
        raise ValueError(f"must have a string as 'name', got {value['name']!r:.80}")
    if 'trace' in value:
        checked_trace(value['trace'])
    return value


def checked_trace(trace: Any) -> list[dict[str, Any]]:
    """A trace of guidance, if it is one.

    Raises:
        ValueError: If it is not a list of dicts of numbers.
    """
    if not isinstance(trace, list) or not all(isinstance(step, dict) for step in trace):
        raise ValueError(f"must have a list of dicts as 'trace', got {trace!r:.80}")
    for index, step in enumerate(trace):
        for key, number in step.items():
            if not (number is None or isinstance(number, (int, float))):
                raise ValueError(f"must have numbers in its 'trace', got {key!r} = {number!r:.80} in entry {index}")
    return trace


def _optional_object(value: Any) -> dict[str, Any] | None:
    if not (value is None or isinstance(value, Mapping)):
        raise ValueError(f'must be an object or null, got {value!r:.80}')
    return plain_json(value)


def _filter(value: Any) -> dict[str, Any] | None:
    value = _optional_object(value)
    for key, folder in _FILTER_FILES.items():
        if value and value.get(key) is not None:
            try:
                _file_in(folder)(value[key])
            except ValueError as error:
                raise ValueError(f'has the {key!r} {value[key]!r:.200}, which {error}') from error
    return value


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    'id': _filled_string, 'image': _file_in(IMAGE_FOLDER), 'mask': _file_in(MASK_FOLDER), 'source_mask': _string,
    'prompt': _string, 'reference': _optional_string, 'seed': _seed, 'generator': _generator, 'guidance': _guidance,
    'filter': _filter, 'mask_origin': _optional_object}
