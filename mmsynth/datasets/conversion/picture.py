"""Rasters as pictures of 8 bits: which bands are red, green and blue, and how their values are stretched.

Legend: h w pixels of a window, C = 3 bands of the picture.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmsynth.datasets.conversion.files import SourceFile
from mmsynth.datasets.conversion.raster import Array, Raster
from mmsynth.datasets.conversion.tiling import Window


def picture_bands(raster: Raster, bands: Sequence[int] | None) -> tuple[int, ...] | None:
    """Which bands are red, green and blue; None where the palette of the file says the colours.

    Raises:
        ValueError: If the file has no such bands, or too many to tell.
    """
    if bands is not None:
        if max(bands) > raster.bands:
            raise ValueError(f'{raster.file} has {raster.bands} band(s), `bands` asks for {" ".join(map(str, bands))}; '
                             'they are counted from 1.')
        return (bands[0], ) * 3 if len(bands) == 1 else tuple(bands)
    if raster.palette is not None:
        return None
    if raster.bands == 1 or raster.bands == 2 and raster.plain_alpha:
        return 1, 1, 1
    if raster.bands == 3 or raster.plain_alpha:
        return 1, 2, 3
    raise ValueError(f'{raster.file} has {raster.bands} bands; say by `bands` which are red, green and blue, for '
                     'example --bands 3 2 1.')


def read_picture(raster: Raster, window: Window, bands: tuple[int, ...] | None,
                 stretch: 'Stretch | None') -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A window as a picture.

    Args:
        raster: The image.
        window: The part of it.
        bands: See :func:`picture_bands`.
        stretch: How values become 0 … 255; None for 8-bit files as they are.

    Returns:
        picture (h, w, 3), uint8, [0, 255], RGB, black without data; valid (h, w): where there is data.
    """
    if bands is None:
        assert raster.palette is not None  # or picture_bands had named bands
        index = raster.read(window)[..., 0]
        valid = raster.has_data(index[..., None])
        colours = np.zeros((256, 3), np.uint8)
        colours[:len(raster.palette)] = raster.palette
        return np.where(valid[..., None], colours[index], np.uint8(0)), valid
    values = raster.read(window, bands)
    valid = raster.has_data(values)
    picture = values if stretch is None else stretch.apply(values)
    return (picture if valid.all() else np.where(valid[..., None], picture, np.uint8(0))), valid


@dataclass(frozen=True)
class Stretch:
    """Values in ``low`` … ``high`` become 0 … 255, per band; what lies outside becomes 0 or 255.

    Attributes:
        low: Of the C bands.
        high: Of the C bands.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, values: Array) -> NDArray[np.uint8]:
        """(..., C) → (..., C), uint8: round(255 · (value - low) / (high - low)), cut to [0, 255]."""
        low, high = (np.asarray(side, np.float32) for side in (self.low, self.high))
        scaled = (np.nan_to_num(values.astype(np.float32)) - low) * (255 / np.maximum(high - low, 1e-12))
        return np.rint(scaled.clip(0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class StretchRule:
    """How images become pictures of 8 bits.

    Attributes:
        kind: 'auto': 8-bit images stay as they are, others are stretched by percentiles. 'none': 8-bit images only.
            'percentile', 'range': always.
        percentiles: Lower and upper, per band.
        over: What percentiles are taken of: 'set', all images together, which keeps the differences between them; or
            'image', each by itself.
        value_range: The values that become 0 and 255, for 'range'.
    """

    kind: Literal['auto', 'none', 'percentile', 'range'] = 'auto'
    percentiles: tuple[float, float] = (2.0, 98.0)
    over: Literal['set', 'image'] = 'set'
    value_range: tuple[float, float] | None = None

    NUM_PIXELS = 4_000_000  # that percentiles are taken of, at most

    def __post_init__(self) -> None:
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f'`percentiles` must be two rising numbers in 0 … 100, got {self.percentiles}.')
        if (self.kind == 'range') != (self.value_range is not None):
            raise ValueError(f"`stretch` 'range' and `value_range` go together, got {self.kind!r} and "
                             f'{self.value_range}.')
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f'`value_range` must be two rising numbers, got {self.value_range}.')

    def needed(self, dtype: np.dtype, file: SourceFile) -> bool:
        """Whether an image of this type is stretched.

        Raises:
            ValueError: If it must be and may not.
        """
        if self.kind == 'none' and dtype != np.uint8:
            raise ValueError(f"{file} has values of {dtype}, and `stretch` is 'none'; choose 'percentile' or 'range'.")
        return self.kind in ('percentile', 'range') or dtype != np.uint8

    def of_samples(self, samples: Sequence[Array]) -> Stretch:
        """The stretch for pixels (n, C) of one image or of many."""
        if self.value_range is not None:
            low, high = self.value_range
            return Stretch((low, ) * 3, (high, ) * 3)
        pixels = np.concatenate(samples) if samples else np.zeros((0, 3))
        pixels = pixels[np.isfinite(pixels).all(axis=1)]
        if not len(pixels):  # nothing but 'no data'
            return Stretch((0.0, ) * 3, (1.0, ) * 3)
        low, high = np.percentile(pixels, self.percentiles, axis=0)
        return Stretch(tuple(low.tolist()), tuple(high.tolist()))
