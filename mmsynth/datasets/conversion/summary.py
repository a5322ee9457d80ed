"""What a conversion found and wrote: images, tiles and the share of every class, per part."""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from mmsynth.utils.labels import IGNORE_INDEX


@dataclass
class PartSummary:
    """One part of a set.

    Attributes:
        images: Images read.
        tiles: Tiles written, or images where they are not cut.
        dropped: Tiles left out because too little of them is labelled.
        padded: Tiles smaller than the tile size, which were filled up.
        pixels: Pixels of each of the K classes in the tiles, (K,).
        ignored: Pixels without a label in the tiles.
        unknown: Those of them whose label the class table did not know.
    """

    pixels: NDArray[np.int64]
    images: int = 0
    tiles: int = 0
    dropped: int = 0
    padded: int = 0
    ignored: int = 0
    unknown: int = 0

    def add(self, ids: NDArray[np.uint8]) -> None:
        """Count a tile's class ids (H, W)."""
        counts = np.bincount(ids.reshape(-1), minlength=IGNORE_INDEX + 1)
        self.pixels += counts[:len(self.pixels)]
        self.ignored += int(counts[IGNORE_INDEX])

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        return dict(images=self.images, tiles=self.tiles, dropped=self.dropped, padded=self.padded,
                    pixels=dict(zip(classes, self.pixels.tolist())), ignored=self.ignored, unknown=self.unknown)


@dataclass
class Summary:
    """A conversion.

    Attributes:
        title: What was converted.
        classes: The K class names.
        parts: What is in each part.
    """

    title: str
    classes: Sequence[str]
    parts: dict[str, PartSummary] = field(default_factory=dict)

    def part(self, name: str) -> PartSummary:
        return self.parts.setdefault(name, PartSummary(np.zeros(len(self.classes), np.int64)))

    def table(self) -> Table:
        """Images, tiles and shares: of a class among the labelled pixels, of ignored ones among all."""
        table = Table(title=self.title, title_justify='left')
        table.add_column('', justify='left')
        for name in self.parts:
            table.add_column(name, justify='right')
        parts = list(self.parts.values())
        for label, values in (('images', [part.images for part in parts]), ('tiles', [part.tiles for part in parts]),
                              ('tiles left out', [part.dropped for part in parts]),
                              ('tiles filled up', [part.padded for part in parts])):
            if any(values) or label in ('images', 'tiles'):
                table.add_row(label, *(f'{value:,}' for value in values))
        table.add_section()
        for index, name in enumerate(self.classes):
            table.add_row(name, *(_share(part.pixels[index], part.pixels.sum()) for part in parts))
        table.add_section()
        table.add_row('ignored, of all pixels', *(_share(part.ignored, part.ignored + part.pixels.sum())
                                                  for part in parts))
        if any(part.unknown for part in parts):
            table.add_row('  of these unknown labels', *(_share(part.unknown, part.ignored + part.pixels.sum())
                                                         for part in parts))
        return table


def _share(count: int, total: int) -> str:
    if not total:
        return '–'
    share = 100 * count / total
    return '0' if not count else '< 0.01 %' if share < 0.005 else f'{share:.2f} %'
