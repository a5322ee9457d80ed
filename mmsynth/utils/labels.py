"""Label files and label maps: reading them without losing bits, and the one check of their values.

Legend: H W pixels.
"""
from pathlib import Path

import numpy as np
from mmengine import fileio
from numpy.typing import NDArray
from torch import nn

from mmsynth.utils.images import opened_image

IGNORE_INDEX = 255  # of pixels without a label, in every label map of this project, whatever the files use

_LABEL_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L')
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


def read_label(path: str, backend_args: dict | None = None) -> NDArray[np.int32]:
    """Read a label file without losing bits; of a palette image, the indices.

    Returns:
        The values as stored (H, W), int32.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it cannot be read or is no single-band integer image.
    """
    content = read_bytes(path, 'label', backend_args)
    with opened_image(path, 'label', content=content) as image:
        mode, bands, array = image.mode, len(image.getbands()), np.asarray(image)
    if mode not in _LABEL_MODES:
        raise ValueError(f'label {path} must be a single band of class ids with 8 or 16 bits, found mode {mode} of '
                         f'{bands} band(s); convert its colours to class ids.')
    return array.astype(np.int32) // png_stretch(content)


def png_stretch(content: bytes) -> int:
    """By what Pillow multiplies the values of 2- and 4-bit grey PNG files (it fills the range 0 … 255)."""
    is_grey_png = content.startswith(_PNG_SIGNATURE) and content[25] == 0
    return {2: 85, 4: 17}.get(content[24], 1) if is_grey_png else 1


def read_bytes(path: str, what: str, backend_args: dict | None) -> bytes:
    """Read a file by the host's file backend.

    Raises:
        FileNotFoundError: If it is missing; the message calls it ``what``.
    """
    try:
        return fileio.get(path, backend_args=backend_args)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{what} {path} does not exist; correct the manifest or the folders of the data set '
                                '(`data_root`, `data_prefix`), or bring the file back.') from error


def check_ignore_index(segmentor: nn.Module) -> None:
    """Check that a segmentor can train on this project's labels, whose pixels without a label are 255.

    Raises:
        ValueError: If a head of it ignores another value: its loss would take 255 for a class.
    """
    for name, module in segmentor.named_modules():
        found = getattr(module, 'ignore_index', IGNORE_INDEX)
        if isinstance(found, int) and found != IGNORE_INDEX and hasattr(module, 'num_classes'):
            raise ValueError(f'`{name}.ignore_index` is {found}, and synthetic samples have {IGNORE_INDEX} where there '
                             f'is no label, which its loss would take for a class; set it to {IGNORE_INDEX}.')


def check_labels(label: NDArray[np.integer], num_classes: int, source: str | Path) -> None:
    """Check that a label map holds class ids and 255 only.

    Args:
        label: (H, W), integer.
        num_classes: Class count K; ids are 0 … K - 1.
        source: The file, for the message.

    Raises:
        ValueError: If it holds another value.
    """
    wrong = label[((label < 0) | (label >= num_classes)) & (label != IGNORE_INDEX)]
    if not wrong.size:
        return
    hint = f'; if its ids are 1 … {num_classes}, subtract 1' if not (label == 0).any() and wrong.max() == num_classes \
        else ''
    raise ValueError(f'{source}: labels must be class ids below {num_classes}, or {IGNORE_INDEX} for pixels without a '
                     f'label, got {int(wrong.flat[0])} in {wrong.size} pixels{hint}.')
