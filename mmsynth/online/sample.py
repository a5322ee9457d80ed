"""A sample of a round, on its way from the generator to the pool. Legend: H W pixels."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsynth.pool import Pool, PoolRecord


@dataclass(frozen=True, eq=False)
class Sample:
    """A generated sample, as :meth:`Pool.add` stores it.

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

    def add_to(self, pool: Pool) -> PoolRecord:
        """Store it; errors as of :meth:`Pool.add`."""
        return pool.add(self.id, self.image, self.mask, filtered=self.filtered, weight=self.weight, **self.details)
