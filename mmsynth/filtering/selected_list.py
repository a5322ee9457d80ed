"""``selected.txt`` of a pool, changed by hand: what training lists, sample by sample.

Legend: N samples of the pool.
"""
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsynth.filtering.selection import IMAGES_PER_MASK_FILE, SELECTED_FILE, mask_id, write_selected
from mmsynth.pool import Pool, Records
from mmsynth.pool.index import DROPPED, signature_at, stem_of
from mmsynth.utils.progress import progress_bar

_PROGRESS_FROM = 10_000  # records; fewer are read within a second


class SelectedList:
    """How often training lists each sample of a pool, as ``selected.txt`` says.

    Without that file it is what :class:`~mmsynth.datasets.PoolDataset` takes by itself: once each sample that the
    filter kept, or that none has seen. The file is written when a sample is marked, as
    :meth:`~mmsynth.filtering.selection.Selection.write` does it: in the pool's order, a sample on as many lines as it
    is repeated. Samples that are not marked keep their lines. What others write into it meanwhile is read before.

    Args:
        pool: The pool, as it was when it was opened.

    Raises:
        ValueError: If the file names samples that the pool does not hold.
    """

    def __init__(self, pool: Pool) -> None:
        self._root, self._records = pool.root, pool.records
        self._names: NDArray[np.bytes_] | None = None  # stem of every sample, read before the first mark
        self._before: dict[int, int] = {}  # number of a sample that was marked here → how often it was listed
        self._state: tuple[int, ...] | None = ()
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._refresh()

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each sample is listed now (N), 0 for those left out; not to be changed."""
        self._refresh()
        return self._counts

    def mark(self, numbers: Sequence[int], *, keep: bool) -> None:
        """Keep samples or leave them out, and write the list. For one who holds the pool's lock.

        A sample that is listed already stays as often as it is. One that comes (back) is listed as often as before it
        was dropped here, else as often as ``images_per_mask.json`` says of its mask, else once.

        Raises:
            ValueError: If no sample would be left; nothing is written then.
            OSError: If the list cannot be written.
        """
        before = self.counts
        counts = before.copy()
        for number in numbers:
            if not keep:
                counts[number] = 0
            elif not counts[number]:
                counts[number] = self._before.get(number) or self._mask_repeats(number)
        if (counts == before).all():
            return
        if not counts.any():
            raise ValueError(f'no sample of {self._root} would be left in {SELECTED_FILE}; keep at least one.')
        if self._names is None:
            self._names = _read_names(self._records)
        write_selected(self._root, (name.decode() for name in np.repeat(self._names, counts)))
        self._before |= {number: int(before[number]) for number in numbers if before[number]}
        self._counts, self._state = counts, signature_at(self._root / SELECTED_FILE)

    def _mask_repeats(self, number: int) -> int:
        """How often the selection that wrote the list repeats kept samples of this one's mask."""
        path = self._root / IMAGES_PER_MASK_FILE
        if not path.is_file():
            return 1
        repeats = json.loads(path.read_text(encoding='utf-8'))
        found = repeats.get(mask_id(self._records[number]), 1) if isinstance(repeats, dict) else repeats
        if type(found) is not int or found < 1:
            raise ValueError(f'{path} must say for each mask how many images, from 1 on, got {found!r:.80}. Run '
                             'tools/select_samples.py again, or delete the file.')
        return found

    def _refresh(self) -> None:
        """Read the file if it is another than before."""
        path = self._root / SELECTED_FILE
        state = signature_at(path)
        if state != self._state:
            self._counts, self._state, self._before = self._read(path), state, {}

    def _read(self, path: Path) -> NDArray[np.int64]:
        try:
            names = path.read_text(encoding='utf-8').split()
        except FileNotFoundError:
            return ((self._records.rows['flags'] & DROPPED) == 0).astype(np.int64)
        return np.bincount(self._records.find_names(names, str(path)), minlength=len(self._records))


def _read_names(records: Records) -> NDArray[np.bytes_]:
    """The stems of all samples (N)."""
    bar = progress_bar(records, unit='sample', title='read names', hidden=len(records) < _PROGRESS_FROM)
    return np.array([stem_of(record) for record in bar], np.bytes_)
