"""What the arrays of a sample must be like before they are stored, or after they were read.

Legend: H W pixels.
"""
from pathlib import Path

import numpy as np

from mmsynth.utils.labels import check_labels


def check_sample(id: str, image: np.ndarray, mask: np.ndarray, num_classes: int) -> None:
    """Raise ValueError unless image (H, W, 3) and mask (H, W) are uint8, of one size, and the mask of these classes."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'sample {id!r}: `image` must be (H, W, 3) uint8, got {image.shape} {image.dtype}')
    check_mask(f'sample {id!r}', mask, num_classes)
    if image.shape[:2] != mask.shape or not mask.size:
        raise ValueError(f'sample {id!r}: `image` and `mask` must have one size, not empty, got '
                         f'{image.shape[:2]} and {mask.shape}')


def check_mask(source: str | Path, mask: np.ndarray, num_classes: int) -> None:
    """Raise ValueError unless a mask is (H, W), uint8, with class indices or 255."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f'{source}: `mask` must be (H, W) uint8, got {mask.shape} {mask.dtype}')
    check_labels(mask, num_classes, source)


def check_filtered(id: str, label: np.ndarray, weight: np.ndarray | None, num_classes: int) -> None:
    """Raise ValueError unless a filtered label is a mask, and a weight map (H, W), uint8, of its size."""
    check_mask(f'sample {id!r}, filtered', label, num_classes)
    if weight is not None and (weight.shape != label.shape or weight.dtype != np.uint8):
        raise ValueError(f'sample {id!r}: `weight` must be {label.shape} uint8, as the filtered label is, got '
                         f'{weight.shape} {weight.dtype}')
