"""Weights of pixels in training: how far the label of each pixel is trusted.

A filtered pool holds them as ``weights/NAME.png`` beside its labels. They are loaded, moved by mmseg's own transforms
together with the label, and packed for :class:`~mmsynth.models.weighted_segmentor.WeightedEncoderDecoder`::

    train_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='mmsynth.LoadPixelWeights'),
        dict(type='RandomCrop', crop_size=(512, 512)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='mmsynth.PackWeightedSegInputs')]

Legend: H W pixels.
"""
import os

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from numpy.typing import NDArray

from mmsynth.registry import TRANSFORMS
from mmsynth.utils.labels import read_label

FULL_WEIGHT = 255  # in files and in ``gt_pixel_weight`` until it is packed


@TRANSFORMS.register_module()
class LoadPixelWeights(BaseTransform):
    """Load a weight map, 8 bits, weight = value / 255; stands after the transform that loads the label.

    The map is the file of the label's name (``.png``) in ``folder``, which lies beside the label's own folder. It stays
    in 8 bits and is listed in ``seg_fields``, so that mmseg's transforms treat it as they treat the label: the nearest
    pixel is taken, and what they fill in with 255 is ignored in the label, whatever its weight. So do RandomCrop,
    RandomFlip (without ``swap_seg_labels``), RandomRotate, RandomRotFlip, RandomCutOut, RandomMosaic, Resize and
    RandomResize. Not so ``Pad``, Albu and what else moves ``gt_seg_map`` by its name; ``SegDataPreProcessor`` pads
    batches in the place of ``Pad``.

    Reads ``seg_map_path`` and ``gt_seg_map``. Writes ``gt_pixel_weight`` (H, W), uint8; its name into ``seg_fields``.

    Args:
        folder: Name of the folder of weight maps.
        required: Refuse samples without a map; otherwise all their pixels count in full.
        backend_args: The host's file backend.

    Raises:
        FileNotFoundError: If there must be a map and there is none.
        ValueError: If the label is not loaded yet, ``folder`` is no plain name, or the map is no single band of 8 bits
            with the label's size.
    """

    def __init__(self, folder: str = 'weights', required: bool = True, backend_args: dict | None = None) -> None:
        if not folder or os.path.basename(folder) != folder:
            raise ValueError(f"`folder` must be the name of a folder beside that of the labels, got {folder!r}.")
        self.folder = folder
        self.required = required
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        if 'gt_seg_map' not in results:
            raise ValueError('LoadPixelWeights found no label; put LoadAnnotations before it in the pipeline.')
        size = results['gt_seg_map'].shape
        path = self._path(results['seg_map_path'])
        if fileio.exists(path, self.backend_args):
            results['gt_pixel_weight'] = _read_weights(path, size, self.backend_args)
        elif self.required:
            raise FileNotFoundError(f'{results["seg_map_path"]} has no weight map {path}; filter the pool with soft '
                                    'weights, set `folder`, or, for data that has none, `required=False` of '
                                    'LoadPixelWeights.')
        else:
            results['gt_pixel_weight'] = np.full(size, FULL_WEIGHT, np.uint8)
        results['seg_fields'] = [*results.get('seg_fields', ()), 'gt_pixel_weight']
        return results

    def _path(self, label_path: str) -> str:
        folder, name = os.path.split(label_path)
        return os.path.join(os.path.dirname(folder), self.folder, os.path.splitext(name)[0] + '.png')

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folder={self.folder!r}, required={self.required})'


@TRANSFORMS.register_module()
class PackWeightedSegInputs(PackSegInputs):
    """As mmseg's ``PackSegInputs``, and the weights as ``gt_pixel_weight`` (1, H, W), float32, [0, 1].

    Samples without weights are packed as by mmseg.

    Raises:
        ValueError: If a transform moved the label and not its weights, or swapped values of both.
    """

    def transform(self, results: dict) -> dict:
        packed = super().transform(results)
        if 'gt_pixel_weight' not in results:
            return packed
        weight, label = results['gt_pixel_weight'], results['gt_seg_map']
        if weight.shape != label.shape:
            raise ValueError(f'the label {results.get("seg_map_path")} became {_size(label)}, its weights '
                             f'{_size(weight)} (height x width): a transform after LoadPixelWeights moves `gt_seg_map` '
                             'alone. Put it before, or, if it is Pad, leave it out and let `data_preprocessor` pad.')
        if results.get('swap_seg_labels'):
            raise ValueError('`swap_seg_labels` of RandomFlip swaps values of the weights as well; leave it out where '
                             'weights are loaded.')
        weight = torch.from_numpy(np.ascontiguousarray(weight)).float() / FULL_WEIGHT
        packed['data_samples'].gt_pixel_weight = PixelData(data=weight[None])
        return packed


def _read_weights(path: str, size: tuple[int, ...], backend_args: dict | None) -> NDArray[np.uint8]:
    weight = read_label(path, backend_args)
    if weight.max(initial=0) > FULL_WEIGHT or weight.min(initial=0) < 0:
        raise ValueError(f'weight map {path} must have 8 bits, found values up to {weight.max()}.')
    if weight.shape != size:
        raise ValueError(f'weight map {path} is {_size(weight)}, its label {size[0]} x {size[1]} (height x width); '
                         'filter the pool again.')
    return weight.astype(np.uint8)


def _size(array: NDArray) -> str:
    return f'{array.shape[0]} x {array.shape[1]}'
