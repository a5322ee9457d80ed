"""Objects of a mask: the connected components of a class; finding them, cutting them out, and where they fit.

Legend: H W pixels of the mask, h w of the object's box.
"""
import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mmsynth.datasets.mask_sources.recipe import Mask

Shape = NDArray[np.bool_]


class MaskObject(NamedTuple):
    """A connected component of a class; pixels that touch at a corner are connected.

    Attributes:
        class_id: The class.
        number: Among the components of that class in its mask, from 0, by their first pixels in reading order.
        first: Row and column of that pixel.
        corner: Row and column of the box's upper left pixel.
        size: Height and width of the box.
        pixels: Of the component.
    """

    class_id: int
    number: int
    first: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    pixels: int


def find_objects(mask: Mask, class_id: int, min_pixels: int = 1, max_pixels: int | None = None) -> list[MaskObject]:
    """The components of a class with so many pixels, in the order of their first pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(_binary(mask, class_id), connectivity=8)
    places = np.flatnonzero(labels)
    found, first = np.unique(labels.ravel()[places], return_index=True)  # cv2's own order depends on its threads
    order = np.argsort(first)
    objects = []
    for number, (label, place) in enumerate(zip(found[order].tolist(), places[first[order]].tolist())):
        left, top, width, height, pixels = stats[label].tolist()
        if min_pixels <= pixels <= (max_pixels or pixels):
            first_pixel = divmod(place, mask.shape[1])
            objects.append(MaskObject(class_id, number, first_pixel, (top, left), (height, width), pixels))
    return objects


def cut_out(mask: Mask, thing: MaskObject) -> Shape:
    """The pixels of an object inside its box (h, w), bool."""
    (top, left), (height, width) = thing.corner, thing.size
    _, labels = cv2.connectedComponents(_binary(mask, thing.class_id), connectivity=8)
    return labels[top:top + height, left:left + width] == labels[thing.first]


def places_for(shape: Shape, free: Shape, min_visible: float = 1.0) -> NDArray[np.int64]:
    """Where an object fits.

    Args:
        shape: The object's pixels in its box (h, w).
        free: Pixels of the mask that may be covered (H, W).
        min_visible: Share of the object's pixels that must come to lie on free ones, in (0, 1].

    Returns:
        Rows and columns (N, 2) for the upper left pixel of the box, which lies inside the mask, in reading order.
    """
    if shape.shape[0] > free.shape[0] or shape.shape[1] > free.shape[1]:
        return np.empty((0, 2), np.int64)
    on_free = cv2.matchTemplate(free.astype(np.float32), shape.astype(np.float32), cv2.TM_CCORR)  # counts, nearly whole
    needed = max(1, math.ceil(min_visible * shape.sum() - 1e-9))
    return np.argwhere(on_free > needed - 0.5)


def _binary(mask: Mask, class_id: int) -> Mask:
    return (mask == class_id).astype(np.uint8)
