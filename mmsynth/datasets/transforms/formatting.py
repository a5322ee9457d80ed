"""Packing what a pipeline made into the form that models take."""
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import PixelData
from numpy.typing import NDArray
from torch import Tensor

from mmsynth.registry import TRANSFORMS
from mmsynth.structures import SynthDataSample

META_KEYS = ('sample_id', 'prompt', 'img_path', 'seg_map_path', 'mask_origin', 'reference_path', 'ori_shape',
             'img_shape', 'pad_shape', 'scale_factor', 'flip', 'flip_direction')


@TRANSFORMS.register_module()
class PackSynthInputs(BaseTransform):
    """As mmseg's ``PackSegInputs``, with a :class:`~mmsynth.structures.SynthDataSample`.

    Writes ``inputs``, the image (3, H, W), uint8, BGR (the key is left out where none was loaded), and
    ``data_samples`` with ``gt_sem_seg`` (1, H, W), int64; ``reference`` (3, h, w), uint8, BGR, where there is one; and
    as metainfo those of ``meta_keys`` that are there.

    Args:
        meta_keys: What becomes metainfo.

    Raises:
        ValueError: If there is neither an image nor a mask.
    """

    def __init__(self, meta_keys: Sequence[str] = META_KEYS) -> None:
        if isinstance(meta_keys, str):
            raise ValueError(f'`meta_keys` must be a sequence of names, got the text {meta_keys!r}.')
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict[str, Tensor | SynthDataSample]:
        if 'img' not in results and 'gt_seg_map' not in results:
            raise ValueError('PackSynthInputs found neither an image nor a mask; put LoadImageFromFile or LoadSegMap '
                             'before it in the pipeline.')
        sample = SynthDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        if 'gt_seg_map' in results:
            mask = np.ascontiguousarray(results['gt_seg_map'], dtype=np.int64)
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask)[None])
        if 'reference' in results:
            sample.reference = PixelData(data=_channels_first(results['reference']))
        packed: dict[str, Tensor | SynthDataSample] = dict(data_samples=sample)
        if 'img' in results:
            packed['inputs'] = _channels_first(results['img'])
        return packed

    def __repr__(self) -> str:
        return f'{type(self).__name__}(meta_keys={self.meta_keys})'


def _channels_first(image: NDArray) -> Tensor:
    """Image (H, W) or (H, W, C) → tensor (C, H, W) of its own memory order."""
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
