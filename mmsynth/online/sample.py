"""A painted sample on its way into the pool.

Legend: H W pixels.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsynth.pool import Pool, PoolRecord


@dataclass(frozen=True, eq=False)
class Sample:
    """What :meth:`Pool.add` stores.

    Attributes:
        id: Of the sample in the pool.
        image: (H, W, 3), uint8, RGB.
        mask: (H, W), uint8, class indices, 255 unlabelled.
        details: The other fields of the pool's record, by name: ``source_mask``, ``prompt``, ``seed``, ``generator``,
            and as far as there are any ``reference``, ``guidance``, ``filter``, ``mask_origin``.
        filtered: The label after a filter (H, W), uint8; None if none ran.
        weight: Weights of its pixels (H, W), uint8, or None.
    """

    id: str
    image: np.ndarray
    mask: np.ndarray
    details: Mapping[str, Any]
    filtered: np.ndarray | None = None
    weight: np.ndarray | None = None

    @property
    def kept(self) -> bool:
        """Whether the filter keeps it; True where none ran."""
        found = self.details.get('filter')
        return found is None or bool(found['keep'])

    def add_to(self, pool: Pool) -> PoolRecord:
        """Store it; errors as of :meth:`Pool.add`."""
        return pool.add(self.id, self.image, self.mask, filtered=self.filtered, weight=self.weight, **self.details)
