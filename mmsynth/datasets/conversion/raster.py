"""Images and masks read in windows: GeoTIFF and other formats of GDAL by rasterio, PNG, JPEG and 8-bit TIFF by Pillow.

rasterio is optional (``pip install 'mmsynth[geo]'``). It alone reads a large TIFF in parts, and 16-bit colour images.
Legend: h w pixels of a window, B bands of the file.
"""
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsynth.datasets.conversion.files import SourceFile
from mmsynth.datasets.conversion.tiling import Window
from mmsynth.utils.labels import png_stretch

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.jp2', '.img')
_TIFF = ('.tif', '.tiff')
_GDAL_ONLY = ('.jp2', '.img')
_DTYPES = {'1': np.uint8, 'L': np.uint8, 'P': np.uint8, 'LA': np.uint8, 'RGB': np.uint8, 'RGBA': np.uint8,
           'RGBX': np.uint8, 'CMYK': np.uint8, 'I;16': np.uint16, 'I;16B': np.uint16, 'I;16L': np.uint16,
           'I': np.int32, 'F': np.float32}  # yapf: disable
_BITS_PER_SAMPLE, _EXTRA_SAMPLES, _ORIENTATION = 258, 338, 274  # TIFF and EXIF tags

Array = NDArray[Any]


def open_raster(file: SourceFile) -> 'Raster':
    """Open an image or mask.

    Raises:
        ValueError: If it cannot be read, or only with rasterio, which is not installed.
    """
    if file.suffix in _GDAL_ONLY:
        return _GdalRaster(file, f'{file.suffix} files')
    if file.suffix in _TIFF and has_rasterio():
        return _GdalRaster(file)
    return _PillowRaster.open(file)


def has_rasterio() -> bool:
    """Whether rasterio is installed."""
    return find_spec('rasterio') is not None


class Raster(ABC):
    """An open image or mask; a context manager.

    Attributes:
        file: Where it stands.
        size: Height and width.
        bands: Their number B.
        dtype: Of the values.
        nodata: The value of pixels without data, where the file names one.
        palette: Colours of an indexed file, (N, 3), uint8.
        place: What says where on Earth the pixels lie, where the file does: six numbers and a name of the system.
        plain_alpha: Whether the last band is transparency, which a picture can leave out.
    """

    file: SourceFile
    size: tuple[int, int]
    bands: int
    dtype: np.dtype
    nodata: float | None = None
    palette: NDArray[np.uint8] | None = None
    place: tuple[tuple[float, ...], str] | None = None
    plain_alpha: bool = False

    @abstractmethod
    def read(self, window: Window, bands: Sequence[int] | None = None) -> Array:
        """The values of a window (h, w, B), or of the bands named, counted from 1."""

    @abstractmethod
    def sample(self, bands: Sequence[int], limit: int) -> Array:
        """About ``limit`` of its pixels at most (n, bands), on a regular grid; those without data are left out."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @property
    def turned(self) -> bool:
        """Whether a tag asks viewers (and OpenCV) to turn the picture, which its mask is not."""
        return False

    def __enter__(self) -> 'Raster':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def has_data(self, values: Array) -> NDArray[np.bool_]:
        """Which pixels (...) of values (..., B) are not 'no data' in all bands."""
        if self.nodata is None:
            return np.ones(values.shape[:-1], bool)
        empty: NDArray[np.bool_] = np.isnan(values) if math.isnan(self.nodata) else values == self.nodata
        return np.logical_not(empty.all(axis=-1))

    def _step(self, limit: int) -> int:
        return max(1, math.ceil(math.sqrt(self.size[0] * self.size[1] / limit)))


class _PillowRaster(Raster):
    """A file that Pillow reads without loss; it is decoded as a whole, at the first window."""

    def __init__(self, file: SourceFile, image: Image.Image, buffer: IO[bytes]) -> None:
        self.file = file
        self._image = image
        self._buffer = buffer
        self._values: Array | None = None
        self.size = (image.height, image.width)
        self.bands = len(image.getbands())
        self.dtype = np.dtype(_DTYPES[image.mode])
        self.plain_alpha = image.mode in ('LA', 'RGBA') and file.suffix not in _TIFF
        if image.mode == 'P':
            self.palette = np.array(image.getpalette('RGB'), np.uint8).reshape(-1, 3)

    @staticmethod
    def open(file: SourceFile) -> Raster:
        buffer = file.buffer()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', Image.DecompressionBombWarning)
                image = Image.open(buffer)
            reason = _lost_by_pillow(file, image)
        except Image.DecompressionBombError:
            reason = 'images as large as this'
        except (OSError, SyntaxError, ValueError) as error:
            if file.suffix not in _TIFF or has_rasterio():
                buffer.close()
                raise ValueError(f'{file} cannot be read as an image: {error}.') from error
            reason = 'TIFF files of this kind'
        if reason is None:
            return _PillowRaster(file, image, buffer)
        buffer.close()
        return _GdalRaster(file, reason)

    def read(self, window: Window, bands: Sequence[int] | None = None) -> Array:
        part = self._decode()[window.top:window.top + window.height, window.left:window.left + window.width]
        return part if bands is None else part[..., [band - 1 for band in bands]]

    def sample(self, bands: Sequence[int], limit: int) -> Array:
        step = self._step(limit)
        return self._decode()[::step, ::step, [band - 1 for band in bands]].reshape(-1, len(bands))

    @property
    def turned(self) -> bool:
        self._decode()  # in PNG files the tag may follow the pixels
        return self._image.getexif().get(_ORIENTATION, 1) != 1

    def close(self) -> None:
        self._image.close()
        self._buffer.close()

    def _decode(self) -> Array:
        if self._values is None:
            try:
                values = np.asarray(self._image)
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f'{self.file} cannot be read as an image: {error}.') from error
            values = values.astype(self.dtype, copy=False)  # of 1-bit files, bool
            if self.file.suffix == '.png' and values.ndim == 2 and self.palette is None:
                with self.file.open() as file:
                    values = values // np.array(png_stretch(file.read(26)), values.dtype)
            self._values = values if values.ndim == 3 else values[..., None]
        return self._values


def _lost_by_pillow(file: SourceFile, image: Image.Image) -> str | None:
    """What Pillow would change in reading this file, if anything."""
    if image.mode not in _DTYPES:
        return f'images of mode {image.mode}'
    if file.suffix == '.png' and len(image.getbands()) > 1:
        with file.open() as opened:
            if opened.read(25)[24] > 8:
                return '16-bit colour PNG files'
    if file.suffix in _TIFF:
        tags = getattr(image, 'tag_v2', {})
        if len(image.getbands()) > 1 and max(tags.get(_BITS_PER_SAMPLE, (8, ))) > 8:
            return '16-bit colour TIFF files'
        if 1 in tags.get(_EXTRA_SAMPLES, ()):
            return 'TIFF files with premultiplied transparency'
    return None


class _GdalRaster(Raster):
    """A file that rasterio reads, a window at a time.

    Args:
        file: The file.
        what: What needs rasterio, for the message when it is not installed.
    """

    def __init__(self, file: SourceFile, what: str = 'this file') -> None:
        if not has_rasterio():
            raise ValueError(f"{file}: {what} need rasterio; pip install 'mmsynth[geo]', or convert the file to PNG.")
        import rasterio
        from rasterio.enums import PhotometricInterp
        self.file = file
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
                self._opened = rasterio.open(file.gdal_path)
                if self._opened.photometric == PhotometricInterp.cmyk:
                    # GDAL would turn the four bands, which are others in GID-24, into RGBA
                    self._opened.close()
                    self._opened = rasterio.open(f'GTIFF_RAW:{file.gdal_path}')
        except rasterio.errors.RasterioError as error:
            raise ValueError(f'{file} cannot be read as an image: {error}.') from error
        self.size = (self._opened.height, self._opened.width)
        self.bands = self._opened.count
        self.dtype = np.result_type(*self._opened.dtypes)
        self.nodata = self._opened.nodata
        self.palette = self._colour_map()
        if not self._opened.transform.is_identity:
            self.place = tuple(self._opened.transform)[:6], str(self._opened.crs or '')

    def read(self, window: Window, bands: Sequence[int] | None = None) -> Array:
        part = ((window.top, window.top + window.height), (window.left, window.left + window.width))
        return self._read(window=part, indexes=None if bands is None else list(bands))

    def sample(self, bands: Sequence[int], limit: int) -> Array:
        step = self._step(limit)
        shape = (len(bands), math.ceil(self.size[0] / step), math.ceil(self.size[1] / step))
        values = self._read(indexes=list(bands), out_shape=shape).reshape(-1, len(bands))
        return values[self.has_data(values)]

    def close(self) -> None:
        self._opened.close()

    def _read(self, **options: Any) -> Array:
        import rasterio
        try:
            return self._opened.read(**options).transpose(1, 2, 0)
        except rasterio.errors.RasterioError as error:
            raise ValueError(f'{self.file} cannot be read as an image: {error}.') from error

    def _colour_map(self) -> NDArray[np.uint8] | None:
        if self.bands != 1:
            return None
        try:
            colours = self._opened.colormap(1)
        except ValueError:  # it has none
            return None
        return np.array([colours[index][:3] for index in sorted(colours)], np.uint8)
