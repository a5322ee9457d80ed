"""Whether an image and its mask cover the same pixels of the same place."""
import numpy as np

from mmsynth.datasets.conversion.raster import Raster

_MAX_SHIFT = 0.1  # pixels between an image and its mask, by where their files say they lie


def check_fit(image: Raster, mask: Raster) -> None:
    """Compare sizes and, where both files name them, places.

    Raises:
        ValueError: If they differ.
    """
    if image.size != mask.size:
        raise ValueError(f'{mask.file} is {mask.size[1]} x {mask.size[0]} pixels, its image {image.file} is '
                         f'{image.size[1]} x {image.size[0]}; they must cover the same pixels')
    if image.place is None or mask.place is None:
        return
    shift = _shift_in_pixels(image.place[0], mask.place[0], image.size)
    if shift > _MAX_SHIFT:
        raise ValueError(f'{mask.file} lies {shift:.3g} pixels away from its image {image.file}, by their '
                         'geotransforms; bring them onto the same grid (gdalwarp)')
    systems = {image.place[1], mask.place[1]} - {''}
    if len(systems) > 1:
        raise ValueError(f'{mask.file} and its image {image.file} have different coordinate systems; bring them onto '
                         'the same grid (gdalwarp)')


def _shift_in_pixels(first: tuple[float, ...], second: tuple[float, ...], size: tuple[int, int]) -> float:
    """How far corners of an image (height, width) lie apart by two geotransforms (a, b, c, d, e, f)."""
    one, other = (np.reshape(place, (2, 3)) for place in (first, second))
    corners = np.array([[0, 0, 1], [size[1], 0, 1], [0, size[0], 1]]).T
    return float(np.abs((one - other) @ corners).max() / np.sqrt(abs(np.linalg.det(one[:, :2]))))
