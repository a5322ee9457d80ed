"""Real images and their labels, whole and in their own size, out of any data set for segmentation.

Legend: H W pixels.
"""
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmsynth.utils.labels import check_labels

Pair = tuple[np.ndarray, np.ndarray]


def class_names(leaves: Sequence[Any], num_classes: int, source: str) -> tuple[str, ...]:
    """The classes of data sets.

    Args:
        leaves: The data sets.
        num_classes: Of the segmentor that reads them.
        source: What to call them in messages.

    Raises:
        ValueError: If they differ in their classes, have others than the segmentor, or hold no image.
    """
    lists = {tuple(leaf.metainfo.get('classes') or ()) for leaf in leaves}
    if len(lists) > 1:
        raise ValueError(f'{source}: its data sets have different classes; the losses need one list.')
    classes = lists.pop()
    if len(classes) != num_classes:
        raise ValueError(f'{source}: the data set has {len(classes)} classes, the segmentor {num_classes}; '
                         'give the config that the segmentor was trained with.')
    if not sum(map(len, leaves)):
        raise ValueError(f'{source}: the data set has no images.')
    return classes


def real_pairs(leaves: Sequence[Any], places: Iterable[int] | None = None) -> Iterator[Pair]:
    """Images (H, W, 3), uint8, RGB, and their labels (H, W), int64, 255 where unlabelled.

    Of each data set's pipeline only what loads is used: no crop, flip or resizing.

    Args:
        leaves: The data sets.
        places: Which, counted through all data sets in their order; None for all.

    Raises:
        ValueError: If a pipeline loads no image or no label, or one is not as it should be.
    """
    owners = [(leaf, index) for leaf in leaves for index in range(len(leaf))]
    for place in range(len(owners)) if places is None else places:
        leaf, index = owners[place]
        results = leaf.get_data_info(index)
        for transform in leaf.pipeline.transforms:
            if type(transform).__name__.startswith('Load'):
                results = transform(results)
        yield _checked(results, len(leaf.metainfo['classes']))


def _checked(results: dict[str, Any], num_classes: int) -> Pair:
    image, label = results.get('img'), results.get('gt_seg_map')
    source = str(results.get('seg_map_path') or results.get('img_path'))
    if image is None or label is None:
        raise ValueError(f'{source}: its pipeline loads no {"image" if image is None else "label"}; it needs '
                         'LoadImageFromFile and LoadAnnotations.')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'{source}: the image must be (H, W, 3) uint8, got {image.shape} {image.dtype}.')
    label = label.astype(np.int64)
    check_labels(label, num_classes, source)
    if label.shape != image.shape[:2]:
        raise ValueError(f'{source}: the label must have the size of its image, {image.shape[:2]}, got {label.shape}.')
    return np.ascontiguousarray(image[..., ::-1]), label  # loaded as BGR
