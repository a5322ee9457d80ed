"""References (style images): made of the image itself for training, chosen from a folder for synthesis.

Legend: H W pixels of the mask, h w pixels of a reference as loaded.
"""
import posixpath
from typing import Any, Literal, get_args

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from numpy.typing import NDArray

from mmsynth.datasets.transforms.loading import LoadReference
from mmsynth.registry import TRANSFORMS
from mmsynth.utils.images import IMAGE_SUFFIXES
from mmsynth.utils.seeds import derive_seed

Fit = Literal['resize', 'crop']
_IDENTITY = np.eye(3)


@TRANSFORMS.register_module()
class ReferenceAugment(BaseTransform):
    """Make the training reference: ``reference``, a moved, scaled and turned copy of ``img``, of its size and type.

    The layout no longer agrees with the mask's, so that a generator takes only the appearance from it. Each of the four
    moves is made with probability ``prob``, in this order and about the centre; what comes in from outside is the
    image's mirror image. Stands after crops and flips. Draws from numpy's global state, as the host's transforms do.

    Args:
        prob: Probability of each move, in [0, 1].
        max_shift: Whole pixels along each axis, uniform up to this share of the side, in [0, 1].
        scale_std: Scale ``2 ** N(0, scale_std)``, the same for both axes.
        max_rotation: Angle, uniform up to this share of π (0.1: 18 degrees) either way, in [0, 1].
        shift_std: Fractions of a pixel along each axis, ``N(0, shift_std)`` of the side.

    Raises:
        ValueError: If an option is out of range, or the sample has no image.
    """

    def __init__(self,
                 prob: float = 0.12,
                 max_shift: float = 0.125,
                 scale_std: float = 0.2,
                 max_rotation: float = 0.1,
                 shift_std: float = 0.125) -> None:
        for name, value in dict(prob=prob, max_shift=max_shift, max_rotation=max_rotation).items():
            if not 0 <= value <= 1:
                raise ValueError(f'`{name}` must be in [0, 1], got {value}.')
        for name, value in dict(scale_std=scale_std, shift_std=shift_std).items():
            if value < 0:
                raise ValueError(f'`{name}` must be at least 0, got {value}.')
        self.prob = prob
        self.max_shift = max_shift
        self.scale_std = scale_std
        self.max_rotation = max_rotation
        self.shift_std = shift_std

    def transform(self, results: dict) -> dict:
        if 'img' not in results:
            raise ValueError('ReferenceAugment makes the reference of the image, and there is none; put '
                             'LoadImageFromFile before it. For synthesis use PickReference or LoadReference.')
        image = results['img']
        height, width = image.shape[:2]
        matrix = self._draw(height, width)
        if matrix is _IDENTITY:
            results['reference'] = image.copy()
        else:
            results['reference'] = cv2.warpAffine(
                image, matrix[:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return results

    def _draw(self, height: int, width: int) -> NDArray[np.float64]:
        """A random map of pixel positions (x, y, 1), old → new, (3, 3)."""
        matrix, size = _IDENTITY, np.array([width, height])
        if self._happens():
            matrix = _shift(np.round(np.random.uniform(-1, 1, 2) * self.max_shift * size)) @ matrix
        if self._happens():
            matrix = _turn(size, 0.0, 2**np.random.normal(0, self.scale_std)) @ matrix
        if self._happens():
            matrix = _turn(size, np.pi * self.max_rotation * np.random.uniform(-1, 1), 1.0) @ matrix
        if self._happens():
            matrix = _shift(np.random.normal(0, self.shift_std, 2) * size) @ matrix
        return matrix

    def _happens(self) -> bool:
        return np.random.rand() < self.prob

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(prob={self.prob}, max_shift={self.max_shift}, scale_std={self.scale_std}, '
                f'max_rotation={self.max_rotation}, shift_std={self.shift_std})')


@TRANSFORMS.register_module()
class PickReference(BaseTransform):
    """Choose a reference from a folder of images: ``reference`` (H, W, 3), uint8, BGR, and ``reference_path``.

    The choice follows from the seed and the sample's id (and, where several images are generated for a mask, the number
    of the repeat), not from the order of samples or the worker. The image that belongs to the mask is never chosen:
    neither a file called like the mask or its image, nor, where the sample has an image, one of the same content. A
    reference that the sample already has is replaced.

    Reads ``sample_id``, ``seg_map_path``, ``gt_seg_map``, and where there are such ``img_path`` and ``repeat``.

    Args:
        folder: Images of 8 bits and 3 bands, also in folders below; they need no labels.
        seed: Another seed, another choice.
        fit: How a reference gets the size of the mask, see :func:`fit_reference`.
        backend_args: The host's file backend.

    Raises:
        FileNotFoundError: If the folder is missing or holds no image.
        ValueError: If ``fit`` is unknown, no image is left for a mask, or the chosen one is no 8-bit colour image.
    """

    def __init__(self, folder: str, seed: int = 0, fit: Fit = 'resize', backend_args: dict | None = None) -> None:
        _check_fit(fit)
        self.folder = folder
        self.seed = seed
        self.fit = fit
        self.backend_args = backend_args
        self._names = list_images(folder, type(self).__name__, backend_args)
        self._load = LoadReference(backend_args=backend_args)

    def transform(self, results: dict) -> dict:
        size = _mask_size(results, type(self).__name__)
        results['reference_path'] = self._pick(results)
        results = self._load.transform(results)
        results['reference'] = fit_reference(results['reference'], size, self.fit)
        return results

    def _pick(self, results: dict) -> str:
        """The path of the sample's reference."""
        own = {_stem(results[key]) for key in ('img_path', 'seg_map_path') if results.get(key)}
        names = [name for name in self._names if _stem(name) not in own]
        key = results.get('sample_id') or _stem(results['seg_map_path'])
        attempt = 0
        while names:
            index = derive_seed(self.seed, 'reference', key, results.get('repeat', 0), attempt) % len(names)
            path = fileio.join_path(self.folder, names.pop(index))
            if not self._is_image_of(results, path):
                return path
            attempt += 1
        raise ValueError(f'`folder` {self.folder} of PickReference holds no image but the one that belongs to the mask '
                         f'{key} itself; add images of the domain to generate for.')

    def _is_image_of(self, results: dict, path: str) -> bool:
        """Whether a file has the content of the sample's own image, as far as that is known."""
        own = results.get('img_path')
        return own is not None and fileio.get(path, self.backend_args) == fileio.get(own, self.backend_args)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folder={self.folder!r}, seed={self.seed}, fit={self.fit!r})'


@TRANSFORMS.register_module()
class FitReference(BaseTransform):
    """Give a loaded ``reference`` the size of the mask; stands after ``LoadReference`` and all that cuts the mask.

    Args:
        fit: How, see :func:`fit_reference`.

    Raises:
        ValueError: If ``fit`` is unknown, or there is neither a mask nor an image.
    """

    def __init__(self, fit: Fit = 'resize') -> None:
        _check_fit(fit)
        self.fit = fit

    def transform(self, results: dict) -> dict:
        if 'reference' in results:
            results['reference'] = fit_reference(
                results['reference'], _mask_size(results, type(self).__name__), self.fit)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(fit={self.fit!r})'


def fit_reference(image: NDArray[np.uint8], size: tuple[int, int], fit: Fit) -> NDArray[np.uint8]:
    """Bring an image to a size.

    Args:
        image: (h, w, 3).
        size: (H, W).
        fit: 'resize' shows the whole image, at another scale and shape if need be; 'crop' keeps the scale and takes the
            middle, enlarging only an image that would not cover it.

    Returns:
        The image (H, W, 3).
    """
    height, width = size
    if fit == 'crop':
        factor = max(height / image.shape[0], width / image.shape[1], 1.0)
        enlarged = max(height, round(image.shape[0] * factor)), max(width, round(image.shape[1] * factor))
        image = _resize(image, enlarged)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return np.ascontiguousarray(image[top:top + height, left:left + width])
    return _resize(image, size)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    resized: Any = cv2.resize(
        image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized


def _shift(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(3)
    matrix[:2, 2] = offset
    return matrix


def _turn(size: NDArray[np.int64], angle: float, scale: float) -> NDArray[np.float64]:
    """Rotation by an angle and scaling about the centre of an image of (width, height)."""
    centre = (size - 1) / 2
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return _shift(centre) @ linear @ _shift(-centre)


def _check_fit(fit: str) -> None:
    if fit not in get_args(Fit):
        raise ValueError(f'`fit` must be one of {", ".join(get_args(Fit))}, got {fit!r}.')


def _mask_size(results: dict, name: str) -> tuple[int, int]:
    """(H, W) of what is generated."""
    for key in ('gt_seg_map', 'img'):
        if key in results:
            return tuple(results[key].shape[:2])
    raise ValueError(f'{name} gives a reference the size of the mask, and there is none; put LoadSegMap before it in '
                     'the pipeline.')


def list_images(folder: str, asker: str, backend_args: dict | None) -> list[str]:
    """List the names of the images below a folder, sorted, so that they do not depend on the file system's order."""
    if not fileio.isdir(folder, backend_args=backend_args):
        raise FileNotFoundError(f'`folder` of {asker}: there is no folder {folder}; give one with images of the '
                                'domain that is wanted (they need no labels).')
    files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True, backend_args=backend_args)
    names = sorted(name.replace('\\', '/') for name in files if name.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise FileNotFoundError(f'`folder` of {asker}: {folder} holds no image ({", ".join(IMAGE_SUFFIXES)}).')
    return names


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(str(path).replace('\\', '/')))[0]
