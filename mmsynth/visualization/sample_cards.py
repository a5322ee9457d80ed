"""The samples of a pool as cards of the report: mask, reference, synthetic image, judge's reading, filtered label."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmsynth.pool.manifest import PoolRecord
from mmsynth.pool.store import Pool
from mmsynth.utils.images import FORMATS
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.visualization.filter_result import FilterResult, read_filter
from mmsynth.visualization.grid import colorize
from mmsynth.visualization.report import SampleCard, Tile

_LARGEST_REFERENCE = 640  # pixels kept of a reference's longer side; whole scenes are common
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises on damaged files


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
    """

    def __init__(self, pool: Pool, judge: ShownJudge | None = None) -> None:
        self._pool, self._judge = pool, judge
        records = pool.records
        self._with_reference = any(record.reference for record in records)
        self._with_label = any((record.filter or {}).get('label') for record in records)
        self._with_weight = any((record.filter or {}).get('weight') for record in records)
        self._readings: dict[str, np.ndarray] = {}

    def make(self, records: Sequence[PoolRecord]) -> list[SampleCard]:
        """One card per record.

        Raises:
            ValueError: If image or mask of a sample is damaged. Other pictures that cannot be read are left blank.
        """
        return [self._card(record) for record in records]

    def _card(self, record: PoolRecord) -> SampleCard:
        image, mask = self._pool.load_image(record), self._pool.load_mask(record)
        result = read_filter(record)
        tiles = [Tile('mask', self._colorize(mask))]
        if self._with_reference:
            tiles.append(self._reference(record))
        tiles.append(Tile('synthetic', image, photo=True))
        facts: list[str] = []
        if self._judge is not None:
            reading = self._read(record, image)
            tiles.append(Tile('judge reads', self._colorize(reading)))
            facts.append(_agreement(reading, mask))
        if self._with_label:
            tiles.append(self._stored('filtered label', record, 'label'))
        if self._with_weight:
            tiles.append(self._stored('weight', record, 'weight'))
        if result is not None:
            facts += _measures(result)
        facts += _origin(record)
        mark = '' if result is None else 'kept' if result.keep else 'dropped'
        return SampleCard(record.id, tuple(tiles), tuple(facts), mark, '' if result is None else result.reason)

    def _colorize(self, mask: np.ndarray) -> np.ndarray:
        return colorize(mask, self._pool.palette)

    def _read(self, record: PoolRecord, image: np.ndarray) -> np.ndarray:
        if record.id not in self._readings:
            assert self._judge is not None
            self._readings[record.id] = self._judge.read(image)
        return self._readings[record.id]

    def _reference(self, record: PoolRecord) -> Tile:
        if not record.reference:
            return Tile('reference', None, note='none')
        try:
            with Image.open(record.reference, formats=FORMATS) as file:
                file.draft('RGB', (_LARGEST_REFERENCE, _LARGEST_REFERENCE))
                file.thumbnail((_LARGEST_REFERENCE, _LARGEST_REFERENCE))
                return Tile('reference', np.asarray(file.convert('RGB')), photo=True)
        except _UNREADABLE:
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
        except _UNREADABLE:
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


def _origin(record: PoolRecord) -> list[str]:
    """Where its mask came from and its prompt, where there are such."""
    facts = [] if record.mask_origin is None else [f"mask: {record.mask_origin.get('source', 'made')}"]
    return facts + ([f'“{record.prompt}”'] if record.prompt else [])
