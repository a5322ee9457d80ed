"""A data set of masks in memory, for the tests of mask sources."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from mmengine.dataset import Compose

from mmsynth.datasets.transforms import BuildPrompt, LoadSegMap

CLASSES = ('field', 'road', 'water')


class GivenMask(LoadSegMap):
    """Takes the mask from the record instead of a file."""

    def transform(self, results: dict) -> dict:
        results['gt_seg_map'] = results.pop('stored').copy()
        return results


class MemoryMasks:
    """Masks under the names 'm0', 'm1' … or those given; ``extra`` goes into every record."""

    def __init__(self, masks: Sequence[np.ndarray], classes: Sequence[str] = CLASSES, transforms: Sequence = (),
                 names: Sequence[str] | None = None, **extra: Any) -> None:
        self.masks = masks
        self.metainfo = dict(classes=tuple(classes), palette=[[0, 0, 0]] * len(classes))
        self.pipeline = Compose([GivenMask(), *(transforms or [BuildPrompt(classes=classes)])])
        self.names = names or [f'm{index}' for index in range(len(masks))]
        self.extra = extra

    def full_init(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self.masks)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        name = self.names[idx]
        return dict(sample_id=name, seg_map_path=f'{name}.png', stored=self.masks[idx], sample_idx=idx) | self.extra


def masks(min_side: int = 1, max_side: int = 12, values: Sequence[int] = (0, 1, 2, 255)) -> st.SearchStrategy:
    """Random masks (H, W), uint8."""
    sides = st.integers(min_side, max_side)
    return st.builds(
        lambda height, width, seed: np.random.default_rng(seed).choice(np.uint8(values), (height, width)),
        sides, sides, st.integers(0, 2**32 - 1))


def made(source: Any) -> dict[str, tuple[list, Any, str]]:
    """Sample id → (mask, its origin, prompt), of everything that a mask source gives, in its order."""
    results = [source[index] for index in range(len(source))]
    return {item['sample_id']: (item['gt_seg_map'].tolist(), item.get('mask_origin'), item['prompt'])
            for item in results}
