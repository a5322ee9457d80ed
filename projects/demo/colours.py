"""Colours of images: whether synthetic ones took them from their references.

Legend: N images, s(·) the colour statistics of an image: mean and standard deviation of red, green and blue.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsynth.pool import Pool


@dataclass(frozen=True)
class ReferenceSwap:
    """What another reference did to the images of the same masks and seeds.

    Attributes:
        first: Distance of the first pool's mean statistics to those of (its own, the other pool's) references, in
            levels of 0..255.
        second: The same of the second pool: distances to (the first pool's, its own) references.
        moved: How far the images went where their references went, 0 not at all, 1 as far:
            ``Σ (s(y') - s(y)) · (s(r') - s(r)) / Σ ‖s(r') - s(r)‖²`` over all masks, images y and references r.
    """

    first: tuple[float, float]
    second: tuple[float, float]
    moved: float


def colour_statistics(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Mean and standard deviation of each channel (N, 6) of images (H, W, 3), uint8, RGB, in levels of 0..255."""
    return np.array([np.concatenate([image.mean((0, 1)), image.std((0, 1))]) for image in images])


def reference_swap(first: Pool, second: Pool) -> ReferenceSwap:
    """Compare two pools that were generated for the same masks and seeds with other references.

    Args:
        first: The one pool.
        second: The other; it may hold more images than the first.

    Raises:
        ValueError: If masks or seeds differ, a sample has no reference, or all have the same one in both pools.
        FileNotFoundError: If a reference is gone.
    """
    pairs = _pairs(first, second)
    generated = [colour_statistics(pool.load_image(pair[index]) for pair in pairs)
               for index, pool in enumerate((first, second))]
    given = [colour_statistics(_read(pair[index].reference) for pair in pairs) for index in range(2)]
    asked = given[1] - given[0]
    if not np.any(asked):
        raise ValueError(f'the references of {first.root} and {second.root} have the same colours; nothing was '
                         'swapped.')
    to_first, to_second = ([float(np.linalg.norm(images.mean(0) - references.mean(0))) for references in given]
                           for images in generated)
    moved = ((generated[1] - generated[0]) * asked).sum() / np.square(asked).sum()
    return ReferenceSwap(tuple(to_first), tuple(to_second), float(moved))


def _pairs(first: Pool, second: Pool) -> Sequence[tuple]:
    others = {record.id: record for record in second.records}
    pairs = [(record, others.get(record.id)) for record in first.records]
    unpaired = any(other is None or other.seed != own.seed for own, other in pairs)
    if unpaired or not pairs:
        raise ValueError(f'{first.root} and {second.root} must hold images of the same masks and seeds, at least one.')
    without = [record.id for pair in pairs for record in pair if record.reference is None]
    if without:
        raise ValueError(f'sample {without[0]} of {first.root} or {second.root} was generated without a reference.')
    return pairs


def _read(path: str) -> NDArray[np.uint8]:
    with Image.open(path) as file:
        return np.asarray(file.convert('RGB'))
