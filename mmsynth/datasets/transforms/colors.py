"""Colour transfer: images in the colours of another place or camera, whose images need no labels.

The linear map of optimal transport between two Gaussians (Pitié and Kokaram 2007, "The linear Monge-Kantorovitch linear
colour mapping for example-based colour transfer"),

    x' = T (x - m_a) + m_b,   T = A^-½ (A^½ B A^½)^½ A^-½,

gives an image of mean m_a and covariance A over its pixels the mean m_b and the covariance B of another.
"""
from typing import NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from numpy.typing import NDArray

from mmsynth.datasets.transforms.loading import LoadReference
from mmsynth.datasets.transforms.references import list_images
from mmsynth.registry import TRANSFORMS

_LEAST_VARIANCE = 4.0  # of two grey levels: noise of a plain image is not stretched to colours
_REMEMBERED = 10_000  # images of a folder whose colours a process keeps, about 300 bytes each


def transfer_colors(image: NDArray[np.uint8], reference: NDArray[np.uint8], amount: float = 1.0) -> NDArray[np.uint8]:
    """Bring the colours of an image (H, W, 3) to those of another (h, w, 3), or a share ``amount`` of the way."""
    return _give(_moments(_pixels(reference)), image, amount)


class _Moments(NamedTuple):
    """Mean (C,) and covariance (C, C) of an image's colours."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def _pixels(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return image.reshape(-1, image.shape[-1]).astype(np.float64)


def _moments(pixels: NDArray[np.float64]) -> _Moments:
    return _Moments(pixels.mean(0), np.cov(pixels, rowvar=False))


def _give(wanted: _Moments, image: NDArray[np.uint8], amount: float) -> NDArray[np.uint8]:
    pixels = _pixels(image)
    mean, covariance = _moments(pixels)
    covariance = covariance + _LEAST_VARIANCE * np.eye(len(covariance))
    root, inverse_root = _power(covariance, 0.5), _power(covariance, -0.5)
    matrix = inverse_root @ _power(root @ wanted.covariance @ root, 0.5) @ inverse_root
    moved = (pixels - mean) @ matrix + wanted.mean
    return np.rint(pixels + amount * (moved - pixels)).clip(0, 255).astype(np.uint8).reshape(image.shape)


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """A power of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * values.clip(0)**exponent @ vectors.T


@TRANSFORMS.register_module()
class ColorTransfer(BaseTransform):
    """Give an image the colours of a random one of a folder, by :func:`transfer_colors`; labels stay as they are.

    For a segmentor, and for a generator that is to learn other looks than the labelled images have. Reads and writes
    ``img`` (H, W, 3), uint8. Draws from numpy's global state, as the host's transforms do. A process keeps the
    colours of what it has read of the folder: a file that changes during a training is not read again.

    Args:
        folder: Images of 8 bits and 3 bands, also in folders below, of the place to prepare for; they need no labels.
        prob: Probability that an image is changed, in [0, 1].
        amount: Least and largest share of the way to the other's colours, in [0, 1]; drawn uniformly.
        backend_args: The host's file backend.

    Raises:
        FileNotFoundError: If the folder is missing or holds no image.
        ValueError: If an option is out of range, or an image of the folder is no 8-bit colour image.
    """

    def __init__(self,
                 folder: str,
                 prob: float = 0.5,
                 amount: tuple[float, float] = (0.0, 1.0),
                 backend_args: dict | None = None) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'`prob` must be in [0, 1], got {prob}.')
        if len(amount) != 2 or not 0 <= amount[0] <= amount[1] <= 1:
            raise ValueError(f'`amount` must be two shares in [0, 1], the smaller first, got {amount}.')
        self.folder, self.prob, self.amount = folder, prob, (amount[0], amount[1])
        self._names = list_images(folder, type(self).__name__, backend_args)
        self._load = LoadReference(backend_args=backend_args)
        self._known: dict[str, _Moments] = {}

    def transform(self, results: dict) -> dict:
        if np.random.rand() >= self.prob:
            return results
        wanted = self._colors_of(self._names[np.random.randint(len(self._names))])
        results['img'] = _give(wanted, results['img'], np.random.uniform(*self.amount))
        return results

    def _colors_of(self, name: str) -> _Moments:
        if name in self._known:
            return self._known[name]
        path = fileio.join_path(self.folder, name)
        moments = _moments(_pixels(self._load.transform(dict(reference_path=path))['reference']))
        if len(self._known) < _REMEMBERED:
            self._known[name] = moments
        return moments

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folder={self.folder!r}, prob={self.prob}, amount={self.amount})'
