"""What guidance did at each step of each sample: lines ``{"id": …, "trace": […]}`` beside the manifest.

Long, and asked for one sample at a time, so it is in no record. A line is written before that of its record; of several
lines of one id, as a killed writer leaves them, the last counts.
"""
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmsynth.pool.index import LineIndex, describe_trace, hash64
from mmsynth.pool.manifest import TRACE_FILE, checked_trace, strict_json
from mmsynth.pool.records import PoolFile, Records, shard_folders
from mmsynth.utils.files import append_lines, atomic_file

Trace = list[dict[str, Any]]


class Traces:
    """The traces of a pool, read when they are asked for.

    Args:
        root: The pool's folder.
        grows: Whether to look for new ones each time, as its writer must.
    """

    def __init__(self, root: Path, *, grows: bool) -> None:
        self._root, self._grows = root, grows
        self._indexes: dict[Path, LineIndex] = {}

    def load(self, id: str) -> Trace:
        """The trace of a sample, empty if there is none.

        Raises:
            ValueError: If the file is damaged; names file and line.
        """
        for path in (folder / TRACE_FILE for folder in (self._root, *shard_folders(self._root))):
            if path.is_file():
                if path not in self._indexes:
                    self._indexes[path] = LineIndex(path, describe_trace, unique=False)
                elif self._grows:
                    self._indexes[path].refresh()
                if (number := self._indexes[path].find(id)) is not None:
                    return _parse(self._indexes[path].text(number), path, number + 1)
        return []

    def remove(self, ids: Iterable[str]) -> None:
        """Take traces out of the pool's own file."""
        path = self._root / TRACE_FILE
        if path.is_file():
            rows = LineIndex(path, describe_trace, unique=False).rows
            staying = ~np.isin(rows['id'], np.array([hash64(id) for id in ids], np.uint64))
            with atomic_file(path) as file:
                Records([PoolFile(path)], rows[staying]).write_lines(file)
            self._indexes = {}


def append_trace(folder: Path, id: str, trace: Trace) -> None:
    """Write the trace of a sample into a folder of lists; an empty one needs none."""
    if trace:
        append_lines(folder / TRACE_FILE, json.dumps(dict(id=id, trace=trace), allow_nan=False))


def _parse(text: str, path: Path, line_number: int) -> Trace:
    try:
        return checked_trace(strict_json(text)['trace'])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f'{path}, line {line_number}: {error}. Delete the line.') from error
