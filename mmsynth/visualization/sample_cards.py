"""The samples of a pool as cards of the report: mask, reference, synthetic image, judge's reading, filtered label."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsynth.pool.index import LABELLED, WEIGHTED
from mmsynth.pool.manifest import PoolRecord
from mmsynth.pool.store import Pool
from mmsynth.pool.traces import Trace
from mmsynth.utils.images import FORMATS
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.visualization.filter_result import FilterResult, read_filter
from mmsynth.visualization.grid import colorize
from mmsynth.visualization.plots import percent
from mmsynth.visualization.report import SampleCard, Tile

_COLUMNS = ('mask', 'reference', 'synthetic', 'judge reads', 'filtered label', 'weight')
_SHOWN_SHARE = 5e-4  # of a class's pixels; smaller ones are rounding of weights
_LARGEST_REFERENCE = 640  # pixels kept of a reference's longer side; whole scenes are common
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises on damaged files


@dataclass(frozen=True)
class ShownJudge:
    """A segmentor that reads the synthetic images.

    Attributes:
        read: Image (H, W, 3), uint8, RGB → classes (H, W), uint8, in the pool's order.
        name: What it is, for the page.
        note: A sentence that belongs to every look at its readings, such as that it guided.
    """
    read: Callable[[np.ndarray], np.ndarray]
    name: str
    note: str = ''


class CardMaker:
    """Makes the cards of one pool: all with the same columns, those that some of its samples can fill.

    Args:
        pool: The pool.
        judge: Reads the images; None leaves its column out.
        with_references: Whether to show reference images, which lie outside the pool.

    Attributes:
        columns: Titles of the pictures.
    """

    def __init__(self, pool: Pool, judge: ShownJudge | None = None, *, with_references: bool = True) -> None:
        self._pool, self._judge = pool, judge
        records = pool.records
        flags = records.rows['flags']
        shown = dict.fromkeys(('mask', 'synthetic'), True) | {
            'reference': with_references and any(record.reference for record in records),
            'judge reads': judge is not None,
            'filtered label': (flags & LABELLED).any(),
            'weight': (flags & WEIGHTED).any()}
        self.columns = tuple(title for title in _COLUMNS if shown[title])
        self._readings: dict[str, np.ndarray] = {}

    def make(self, records: Sequence[PoolRecord]) -> list[SampleCard]:
        """One card per record.

        Raises:
            ValueError: If image or mask of a sample is damaged. Other pictures that cannot be read are left blank.
        """
        return [self._card(record) for record in records]

    def tile(self, record: PoolRecord, column: str) -> Tile:
        """One of the pictures of a sample.

        Raises:
            ValueError, OSError: If image or mask is damaged.
        """
        if column == 'mask':
            return Tile(column, self._colorize(self._pool.load_mask(record)))
        if column == 'reference':
            return self._reference(record)
        if column == 'synthetic':
            return Tile(column, self._pool.load_image(record), photo=True)
        if column == 'judge reads':
            return Tile(column, self._colorize(self._read(record)))
        return self._stored(column, record, 'label' if column == 'filtered label' else 'weight')

    def facts(self, record: PoolRecord) -> dict[str, Any]:
        """All of a card but its pictures: ``title``, ``facts``, ``mark`` and ``reason``."""
        result = read_filter(record)
        facts = [] if self._judge is None else [_agreement(self._read(record), self._pool.load_mask(record))]
        facts += ([] if result is None else _measures(result)) + _origin(record)
        mark = '' if result is None else 'kept' if result.keep else 'dropped'
        return dict(title=record.id, facts=tuple(facts), mark=mark, reason='' if result is None else result.reason)

    def _card(self, record: PoolRecord) -> SampleCard:
        return SampleCard(tiles=tuple(self.tile(record, column) for column in self.columns), **self.facts(record))

    def _colorize(self, mask: np.ndarray) -> np.ndarray:
        return colorize(mask, self._pool.palette)

    def _read(self, record: PoolRecord) -> np.ndarray:
        if record.id not in self._readings:
            assert self._judge is not None
            self._readings[record.id] = self._judge.read(self._pool.load_image(record))
        return self._readings[record.id]

    def _reference(self, record: PoolRecord) -> Tile:
        if not record.reference:
            return Tile('reference', None, note='none')
        try:
            with Image.open(record.reference, formats=FORMATS) as file:
                file.draft('RGB', (_LARGEST_REFERENCE, _LARGEST_REFERENCE))
                file.thumbnail((_LARGEST_REFERENCE, _LARGEST_REFERENCE))
                return Tile('reference', np.asarray(file.convert('RGB')), photo=True)
        except UNREADABLE:
            return Tile('reference', None, note=f'cannot be read here: {Path(record.reference).name}')

    def _stored(self, title: str, record: PoolRecord, key: str) -> Tile:
        """A picture that the filter wrote into the pool."""
        name = (record.filter or {}).get(key)
        if not name:
            return Tile(title, None, note='not filtered' if record.filter is None else 'none')
        try:
            with Image.open(self._pool.root / name, formats=FORMATS) as file:
                values = np.asarray(file.convert('L'))
            return Tile(title, values if key == 'weight' else self._colorize(values))
        except UNREADABLE:
            return Tile(title, None, note='cannot be read')


def _agreement(reading: np.ndarray, mask: np.ndarray) -> str:
    labelled = mask != IGNORE_INDEX
    if not labelled.any():
        return 'no labelled pixel to judge'
    return f'judge agrees on {100 * (reading == mask)[labelled].mean():.1f}% of the labelled pixels'


def _measures(result: FilterResult) -> list[str]:
    """What the filter measured, as far as its reason does not say it."""
    facts = []
    if result.valid is not None and '%' not in result.reason:
        facts.append(f'{100 * result.valid:.0f} % valid')
    return facts + ([] if result.hardness is None else [f'hardness {result.hardness:.2f}'])


def guidance_losses(trace: Trace) -> tuple[float | None, float | None]:
    """The critic's loss before the first correction, and the last that was measured; None where there is none."""
    before = [value for entry in trace if (value := entry.get('loss_before')) is not None]
    after = [value for entry in trace if (value := entry.get('loss_after')) is not None] or before[1:]
    return (before[0] if before else None), (after[-1] if after else None)


def provenance(record: PoolRecord, trace: Trace) -> list[str]:
    """What else is recorded of a sample: what guidance did, what the filter does not trust, mask, reference and seed.

    Args:
        record: The sample.
        trace: Of its guidance.
    """
    facts = []
    if record.guidance is not None:
        losses = ' → '.join('–' if loss is None else f'{loss:.3f}' for loss in guidance_losses(trace))
        facts.append(f"{record.guidance['name']}: loss {losses}" if trace else record.guidance['name'])
    result = read_filter(record)
    if result is not None:
        shares = {name: result.removed.get(name, 0) / pixels for name, pixels in result.pixels.items() if pixels}
        shown = [f'{name} {percent(share)}' for name, share in shares.items() if share > _SHOWN_SHARE]
        facts.append(f"not trusted: {', '.join(shown) or 'nothing'}")
    source = Path(record.source_mask)
    facts += [] if source.stem in record.id else [f'made of {source.name}']
    facts += [f'reference {Path(record.reference).name}'] if record.reference else []
    return [*facts, f'seed {record.seed}']


def _origin(record: PoolRecord) -> list[str]:
    """Where its mask came from and its prompt, where there are such."""
    facts = [] if record.mask_origin is None else [f"mask: {record.mask_origin.get('source', 'made')}"]
    return facts + ([f'“{record.prompt}”'] if record.prompt else [])
