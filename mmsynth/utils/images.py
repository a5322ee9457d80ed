"""Image files from outside, read as data: errors name the file, and no other program is started to decode one."""
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import mmcv
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ('PNG', 'TIFF', 'JPEG', 'BMP', 'GIF', 'JPEG2000', 'PPM', 'WEBP')  # Pillow has EPS decoded by Ghostscript

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp')  # of the images below a folder, all that are taken


@contextmanager
def opened_image(path: str | Path, what: str = 'image', *, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image to read it in the block; any error there is the file's.

    Args:
        path: The file, for messages too.
        what: What the messages call it.
        content: What the file holds, where that was read already.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another format than those of ``FORMATS``, or larger than Pillow reads.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f'{what} {path} cannot be read as an image: it is none of {", ".join(FORMATS)}.') from error
    except Exception as error:  # of a damaged file: what Pillow's decoders stumble over
        raise ValueError(f'{what} {path} cannot be read as an image: {error}.') from error


def decode_bgr(content: bytes, path: str, what: str = 'image', *, flag: str = 'color') -> NDArray | None:
    """Decode an image by OpenCV, as the host does: (H, W, 3), BGR with ``flag='color'``; None if it cannot be decoded.

    Raises:
        ValueError: If it is larger than Pillow or OpenCV reads: a small file may claim any size.
    """
    try:
        with suppress(UnidentifiedImageError, OSError, SyntaxError, ValueError):  # OpenCV says whether it can be read
            Image.open(io.BytesIO(content)).close()
        return mmcv.imfrombytes(content, flag=flag, backend='cv2')
    except (Image.DecompressionBombError, cv2.error) as error:
        raise ValueError(f'{what} {path} cannot be read as an image: {error}.') from error
