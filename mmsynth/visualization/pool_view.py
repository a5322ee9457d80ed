"""What the browser of a pool shows: which samples in which order, and the list of those to train on.

A page in the pool's own order costs the same for any size of the pool. An order by a number reads all records once.

Legend: N samples of the pool, K classes.
"""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmsynth.filtering.selected_list import SelectedList
from mmsynth.pool import Pool, PoolRecord
from mmsynth.pool.index import signature_at
from mmsynth.pool.manifest import JOURNAL_FILE, MANIFEST_FILE
from mmsynth.pool.records import shard_folders
from mmsynth.utils.files import FolderLock
from mmsynth.utils.progress import progress_bar
from mmsynth.visualization.filter_result import read_filter
from mmsynth.visualization.sample_cards import UNREADABLE, CardMaker, guidance_losses

PAGE = 60  # samples
SORTS = {'pool': 'order in the pool', 'id': 'id', 'hardness': 'hardness', 'before': 'guidance loss before',
         'after': 'guidance loss after', 'share': 'share of the class'}
SHOWN = {'all': 'all samples', 'kept': 'kept ones', 'dropped': 'dropped ones'}
_PROGRESS_FROM = 500  # samples; fewer are read within a second or two
_LOCK_WAIT = 2.0  # seconds, for another browser of the same pool


class Query(NamedTuple):
    """What to show.

    Attributes:
        sort: A key of ``SORTS``; samples without the number come last.
        down: From the largest on.
        of: Index of the class whose share is sorted by.
        has: Index of a class that the masks hold; None for any.
        show: A key of ``SHOWN``, by the list of samples to train on.
        page: From 1 on.
    """

    sort: str = 'pool'
    down: bool = False
    of: int = 0
    has: int | None = None
    show: str = 'all'
    page: int = 1

    @classmethod
    def parse(cls, values: Mapping[str, str], num_classes: int) -> 'Query':
        """Read the fields of an address.

        Raises:
            ValueError: If one is out of range.
        """
        query = cls(values.get('sort', 'pool'), values.get('down', '') == '1', _number(values, 'of', num_classes) or 0,
                    _number(values, 'has', num_classes), values.get('show', 'all'), _number(values, 'page') or 1)
        for name, choices in (('sort', SORTS), ('show', SHOWN)):
            if getattr(query, name) not in choices:
                raise ValueError(f'`{name}` must be one of {", ".join(choices)}, got {getattr(query, name)!r:.80}.')
        return query

    def fields(self, **changes: Any) -> dict[str, str | int]:
        """The fields of the address that shows this, or with changes what they make of it."""
        values = self._replace(**changes)._asdict()
        return {name: int(value) if isinstance(value, bool) else value for name, value in values.items()
                if value is not None and value != self._field_defaults[name]}


@dataclass(frozen=True)
class Page:
    """A page of samples.

    Attributes:
        records: Its samples.
        counts: How often training lists each of them.
        query: What it shows; with the number of a page that there is.
        found: Number of samples on all pages.
        pages: Number of pages, at least 1.
    """

    records: Sequence[PoolRecord]
    counts: Sequence[int]
    query: Query
    found: int
    pages: int


class PoolView:
    """A pool as its browser sees it; what others add to it, or filter, is seen after the next :meth:`refresh`.

    Args:
        root: The pool's folder.

    Attributes:
        pool: The pool, as it was when last looked at.
        records: Its samples.
        cards: Makes their cards; without references, which lie outside the pool.

    Raises:
        ValueError: If it is no pool, or is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._state: tuple[Any, ...] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Open the pool again if its lists have changed."""
        state = _state(self.root)
        if state == self._state:
            return
        self.pool = Pool.open(self.root)
        self.records = self.pool.records
        self.cards = CardMaker(self.pool, with_references=False)
        self._selected = SelectedList(self.pool)
        self._numbers = _Numbers(self.pool)
        self._state = state

    @property
    def totals(self) -> tuple[int, int, int]:
        """Samples of the pool, those that are kept, and lines of the list to train on."""
        counts = self._selected.counts
        return len(counts), int(np.count_nonzero(counts)), int(counts.sum())

    def find(self, key: int) -> PoolRecord:
        """A sample by the hash of its id.

        Raises:
            KeyError: If there is none.
        """
        return self.records[self._find(key)]

    def page(self, query: Query) -> Page:
        """The samples of a page; of the last one if there are fewer pages."""
        numbers, counts = self.numbers(query), self._selected.counts
        pages = max(1, -(-len(numbers) // PAGE))
        query = query._replace(page=min(query.page, pages))
        shown = numbers[(query.page - 1) * PAGE:query.page * PAGE]
        return Page(self.records[shown], counts[shown].tolist(), query, len(numbers), pages)

    def numbers(self, query: Query) -> NDArray[np.int64]:
        """The samples that a query asks for, on all pages, in its order."""
        kept = self._selected.counts > 0
        chosen = np.arange(len(kept)) if query.show == 'all' else np.flatnonzero(kept == (query.show == 'kept'))
        if query.has is not None:
            chosen = chosen[self._numbers.shares[chosen, query.has] > 0]
        if query.sort == 'pool':
            return chosen[::-1] if query.down else chosen
        values = self._numbers.of(query)[chosen]
        return chosen[np.argsort(-values if query.down else values, kind='stable')]

    def mark(self, key: int, *, keep: bool) -> int:
        """Keep a sample or leave it out, in ``selected.txt``; how often it is listed then.

        Args:
            key: The hash of its id.
            keep: Which.

        Raises:
            KeyError: If there is none.
            ValueError: If none would be left.
            RuntimeError: If the pool is being written; a filter would throw the list away.
            OSError: If the list cannot be written.
        """
        with FolderLock(self.root, wait=_LOCK_WAIT):
            self.refresh()
            number = self._find(key)
            self._selected.mark([number], keep=keep)
        return int(self._selected.counts[number])

    def _find(self, key: int) -> int:
        numbers = np.flatnonzero(self.records.rows['id'] == np.uint64(key))
        if not len(numbers):
            raise KeyError(f'{self.root} has no such sample any more; load the page again.')
        return int(numbers[0])


class _Numbers:
    """Numbers of all samples, each read when it is first asked for; NaN where there is none."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._records = pool, pool.records

    def of(self, query: Query) -> NDArray[np.floating]:
        """What a query sorts by (N)."""
        if query.sort in ('before', 'after'):
            return self.losses[:, int(query.sort == 'after')]
        if query.sort == 'share':
            return self.shares[:, query.of]
        return self.ranks if query.sort == 'id' else self.hardness

    @cached_property
    def ranks(self) -> NDArray[np.floating]:
        """Place of each id among all, in the order of the alphabet (N)."""
        ids = [record.id for record in self._all('ids')]
        ranks = np.empty(len(ids))
        ranks[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
        return ranks

    @cached_property
    def hardness(self) -> NDArray[np.floating]:
        """What the filter recorded (N)."""
        found = (read_filter(record) for record in self._all('hardness'))
        return np.array([np.nan if result is None or result.hardness is None else result.hardness for result in found])

    @cached_property
    def losses(self) -> NDArray[np.floating]:
        """The critic's loss before and after guidance (N, 2)."""
        found = (guidance_losses(self._pool.load_trace(record)) for record in self._all('guidance'))
        return np.array([[np.nan if loss is None else loss for loss in pair] for pair in found]).reshape(-1, 2)

    @cached_property
    def shares(self) -> NDArray[np.floating]:
        """Share of each class among the labelled pixels of each mask (N, K), as the filter counted or of the file."""
        shares = np.zeros((len(self._records), len(self._pool.classes)), np.float32)
        for row, record in zip(shares, self._all('classes')):
            result = read_filter(record)
            if result is not None and result.pixels:
                row[:] = [result.pixels.get(name, 0) for name in self._pool.classes]
            else:
                row[:] = self._count(record)
            row /= row.sum() or 1
        return shares

    def _count(self, record: PoolRecord) -> NDArray[np.int64]:
        try:
            mask = self._pool.load_mask(record)
        except UNREADABLE:  # its card says so
            return np.zeros(len(self._pool.classes), np.int64)
        return np.bincount(mask.ravel(), minlength=256)[:len(self._pool.classes)]

    def _all(self, what: str) -> Iterable[PoolRecord]:
        return progress_bar(self._records, unit='sample', title=f'read {what}',
                            hidden=len(self._records) < _PROGRESS_FROM)


def _state(root: Path) -> tuple[Any, ...]:
    """What changes when a pool's lists do."""
    return tuple(signature_at(folder / name) for folder in (root, *shard_folders(root))
                 for name in (MANIFEST_FILE, JOURNAL_FILE))


def _number(values: Mapping[str, str], name: str, below: int = 2**31) -> int | None:
    """A field of the address; None where it is not given."""
    text = values.get(name, '')
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) >= below:
        raise ValueError(f'`{name}` must be a number from 0 on and below {below}, got {text!r:.80}.')
    return int(text)
