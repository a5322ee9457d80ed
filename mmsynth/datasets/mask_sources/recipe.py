"""The change of a mask between its file and the image generated for it.

A data set says per sample what is to be done, as ``mask_recipe`` in its info; the pipeline does it right after the mask
is loaded. What follows there (crop, prompt, reference, packing) sees the new mask only.

Legend: H W pixels of the mask.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from numpy.typing import NDArray

from mmsynth.registry import TRANSFORMS

Mask = NDArray[np.uint8]
MaskStep = Callable[[Mask], tuple[Mask, dict[str, Any]]]
"""A mask (H, W), class ids, 255 where unlabelled → the changed mask, and what was done: a JSON object with ``source``.

The mask given is not changed in place; one that stays as it is may be given back.
"""


@dataclass(frozen=True)
class MaskRecipe:
    """Steps to take with a mask as it was loaded.

    Attributes:
        of: The sample id of the loaded mask.
        steps: In their order.
    """

    of: str
    steps: tuple[MaskStep, ...] = ()

    def then(self, step: MaskStep) -> 'MaskRecipe':
        """This recipe with one more step."""
        return replace(self, steps=(*self.steps, step))

    def apply(self, mask: Mask) -> tuple[Mask, dict[str, Any] | str]:
        """The changed mask, and its origin: what the last step did, ``of`` what; at the bottom the loaded mask's id."""
        origin: dict[str, Any] | str = self.of
        for step in self.steps:
            mask, done = step(mask)
            origin = dict(source=done['source'], of=origin) | done
        return mask, origin


@TRANSFORMS.register_module()
class ApplyMaskRecipe(BaseTransform):
    """Make the mask that a mask source such as ``TransformedMasks`` asks for; without one, nothing.

    Mask sources put it after the transform that loads masks, unless the pipeline has it already: put after a
    ``CropSegMap``, for example, it pastes objects into what the crop leaves.

    Reads ``mask_recipe``, which goes. Writes ``gt_seg_map`` (H, W), uint8; ``img_shape``; and ``mask_origin``, a JSON
    object. A ``prompt`` that came with the mask goes where the mask no longer holds the same classes.

    Raises:
        ValueError: If there is no mask yet, or an image beside a mask that changed.
    """

    def transform(self, results: dict) -> dict:
        recipe: MaskRecipe | None = results.pop('mask_recipe', None)
        if recipe is None:
            return results
        if 'gt_seg_map' not in results:
            raise ValueError('ApplyMaskRecipe changes `gt_seg_map`; put LoadSegMap before it in the pipeline.')
        loaded = results['gt_seg_map']
        mask, origin = recipe.apply(loaded)
        results['mask_origin'] = origin
        if mask is loaded:
            return results
        if 'img' in results:
            raise ValueError(f'the mask of {recipe.of} is changed and its image no longer fits; take LoadImageFromFile '
                             'out of the pipeline: masks are changed for synthesis only.')
        if not np.array_equal(np.unique(mask), np.unique(loaded)):
            results.pop('prompt', None)
        results['gt_seg_map'] = mask
        results['img_shape'] = mask.shape
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
