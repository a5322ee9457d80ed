"""Cropping masks that have no image beside them; the host's crops need one."""
import numpy as np
from mmcv.transforms import BaseTransform

from mmsynth.registry import TRANSFORMS
from mmsynth.utils.labels import IGNORE_INDEX


@TRANSFORMS.register_module()
class CropSegMap(BaseTransform):
    """Cut the middle out of a mask, padded with ignored pixels where the mask is smaller.

    For synthesis, where masks must have the size that the generator was trained on. Not random: a mask gives the same
    crop every time, so that a sample's id stands for one mask.

    Reads and writes ``gt_seg_map`` (H, W); writes ``img_shape``.

    Args:
        crop_size: (height, width) of the crop in pixels.

    Raises:
        ValueError: If a side is below 1, or the record has an image, which would no longer fit.
    """

    def __init__(self, crop_size: tuple[int, int]) -> None:
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(f'`crop_size` must be (height, width), both at least 1, got {crop_size}.')
        self.crop_size = tuple(crop_size)

    def transform(self, results: dict) -> dict:
        if 'img' in results:
            raise ValueError('CropSegMap crops masks without images; use RandomCrop, which crops both.')
        mask = results['gt_seg_map']
        cropped = np.full(self.crop_size, IGNORE_INDEX, mask.dtype)
        source, target = zip(*(_middle(have, want) for have, want in zip(mask.shape, self.crop_size)))
        cropped[target] = mask[source]
        results['gt_seg_map'] = cropped
        results['img_shape'] = self.crop_size
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(crop_size={self.crop_size})'


def _middle(have: int, want: int) -> tuple[slice, slice]:
    """Where to read and where to write along one side."""
    size = min(have, want)
    read, write = (have - size) // 2, (want - size) // 2
    return slice(read, read + size), slice(write, write + size)
