"""Read a user's folder of labelled images: ``images/``, ``masks/`` (same stems) and ``meta.json``.

Everything is checked with the file's name and the offending value, since a wrong label would otherwise show up as a
crash inside a loss, or not at all.
"""
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsynth.utils.labels import IGNORE_INDEX, check_labels

_IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp')
_MASK_SUFFIXES = ('.png', '.tif', '.tiff', '.bmp')

Uint8 = NDArray[np.uint8]
Source = tuple[str, Path, Path]  # stem, image file, mask file


def read_folder(data_dir: Path) -> tuple[dict[str, Any], list[Source]]:
    """What the set is (name, classes, palette) and its labelled images, sorted by stem.

    Raises:
        ValueError: A part of the folder is missing, ``meta.json`` is wrong, or images have no mask of their own.
    """
    problems = [f'{data_dir / name}/ is missing' for name in ('images', 'masks') if not (data_dir / name).is_dir()]
    if not (data_dir / 'meta.json').is_file():
        problems.append(f'{data_dir / "meta.json"} is missing; write {{"classes": ["first", "second", ...]}} into it')
    refuse(f'`data_dir` = {data_dir} needs images/, masks/ and meta.json', problems)
    about = _read_meta(data_dir / 'meta.json')
    images = sorted(file for file in (data_dir / 'images').iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
    masks = {file.stem: file for file in sorted((data_dir / 'masks').iterdir())
             if file.suffix.lower() in _MASK_SUFFIXES}
    problems = [f'{file}: no mask {data_dir / "masks" / file.stem}.png' for file in images if file.stem not in masks]
    problems += [f'{data_dir / "images"}: {count} images are called {stem}; stems must differ'
                 for stem, count in Counter(file.stem for file in images).items() if count > 1]
    refuse(f'cannot use {data_dir}', problems)
    return about, [(file.stem, file, masks[file.stem]) for file in images]


def _read_meta(file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is not valid JSON: {error}') from None
    classes = meta.get('classes') if isinstance(meta, dict) else None
    if not isinstance(classes, list) or not 1 < len(classes) <= IGNORE_INDEX:
        raise ValueError(f'{file}: "classes" must list the names of 2 to {IGNORE_INDEX} classes in the order of their '
                         f'index, got {classes!r}')
    palette = meta.get('palette') or [[37 * k % 256, 101 * k % 256, 173 * k % 256] for k in range(1, len(classes) + 1)]
    if np.shape(palette) != (len(classes), 3):
        raise ValueError(f'{file}: "palette" must hold [r, g, b] for each of the {len(classes)} classes, '
                         f'got shape {np.shape(palette)}; correct it or leave it out')
    return dict(name=meta.get('name', file.resolve().parent.name), classes=classes, palette=palette)


def read_pair(image_file: Path, mask_file: Path, num_classes: int, downscale: int) -> tuple[Uint8, Uint8]:
    """Read one image and its mask, and shrink both by a whole factor: by area, and by majority vote.

    Returns:
        image (H, W, 3), uint8, [0, 255], RGB; mask (H, W), uint8, 0..num_classes-1 or 255.

    Raises:
        ValueError: A file is unreadable or too small, the sizes differ, or the mask holds another value.
    """
    data = np.frombuffer(image_file.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if data.size else None
    if image is None:
        raise ValueError(f'{image_file} cannot be read as an image')
    mask = _read_mask(mask_file, num_classes)
    if image.shape[:2] != mask.shape:
        raise ValueError(f'{mask_file} is {mask.shape[1]} x {mask.shape[0]} pixels, its image {image_file.name} is '
                         f'{image.shape[1]} x {image.shape[0]}; they must be the same')
    height, width = (side // downscale for side in mask.shape)
    if min(height, width) < 1:
        raise ValueError(f'{image_file} is {mask.shape[1]} x {mask.shape[0]} pixels, too small for `downscale` = '
                         f'{downscale}')
    image = cv2.resize(image[:height * downscale, :width * downscale], (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image[..., ::-1]), shrink_mask(mask, downscale, num_classes)


def _read_mask(file: Path, num_classes: int) -> NDArray[np.integer]:
    """Read a class map of 8 or 16 bit; of a palette image the indices, which is why OpenCV does not read it."""
    try:
        with Image.open(file) as opened:
            mask = np.array(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'{file} cannot be read as a mask: {error}') from None
    if mask.ndim != 2 or mask.dtype.kind not in 'uib':
        raise ValueError(f'{file} must hold one class index per pixel, got {mask.dtype} of shape {mask.shape}; convert '
                         'colours to indices first')
    check_labels(mask, num_classes, file)
    return mask


def shrink_mask(mask: NDArray[np.integer], factor: int, num_classes: int) -> Uint8:
    """Shrink a class map by majority vote in blocks of ``factor`` x ``factor`` pixels.

    Ties go to the lowest class. A block is ignored only when more than half of it is: otherwise its labelled pixels
    alone vote. Rows and columns beyond the last whole block are dropped.

    Args:
        mask: Class map (H, W), values 0..num_classes-1 or 255.
        factor: Whole factor, >= 1.
        num_classes: Number of classes K.

    Returns:
        Class map (H // factor, W // factor), uint8.
    """
    height, width = (side // factor for side in mask.shape)
    mask = mask[:height * factor, :width * factor]

    def votes(value: int) -> NDArray[np.uint32]:  # rows first, then columns: both sums run along memory
        rows = (mask == value).reshape(height, factor, width * factor).sum(axis=1, dtype=np.uint32)
        return rows.reshape(height, width, factor).sum(axis=2)

    winners = np.stack([votes(index) for index in range(num_classes)]).argmax(axis=0)
    return np.where(2 * votes(IGNORE_INDEX) > factor**2, IGNORE_INDEX, winners).astype(np.uint8)


def refuse(what: str, problems: Sequence[str], shown: int = 8) -> None:
    """Raise one ValueError that lists the problems, if there are any."""
    if problems:
        more = [f'... and {len(problems) - shown} more'] if len(problems) > shown else []
        raise ValueError('\n- '.join([f'{what}:', *problems[:shown], *more]))
