"""What mask sources share: reading another data set's masks, and changing them between file and generated image.

A data set states per sample what is to be done, as ``mask_recipe`` in its info; the pipeline does it right after the
mask is loaded. What follows there (crop, prompt, reference, packing) sees the new mask only.

Legend: H W pixels of the mask.
"""
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, LoadAnnotations
from mmengine.dataset import Compose
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mmsynth.datasets.transforms.loading import LoadSegMap
from mmsynth.registry import DATASETS, TRANSFORMS

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


class MaskReader:
    """A data set's masks, by index: as stored, and as they stand where recipes are applied.

    Args:
        dataset: A data set whose pipeline loads masks, or its config.

    Attributes:
        dataset: The data set.
        pipeline: Its pipeline with an :class:`ApplyMaskRecipe`, after the transform that loads masks unless it has one.

    Raises:
        ValueError: If it has no pipeline, as ConcatDataset, or one that loads no masks.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any]) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        pipeline = getattr(self.dataset, 'pipeline', None)
        if pipeline is None:
            raise ValueError(f'{type(self.dataset).__name__} has no pipeline of its own, so its masks cannot be '
                             'changed; wrap each of the data sets in it instead.')
        transforms = list(pipeline.transforms)
        loads = [isinstance(transform, (LoadSegMap, LoadAnnotations)) for transform in transforms]
        if not any(loads):
            raise ValueError(f"the pipeline of {type(self.dataset).__name__} loads no masks; add dict(type='mmsynth."
                             "LoadSegMap') to it.")
        loader = loads.index(True)
        places = [index for index, transform in enumerate(transforms) if isinstance(transform, ApplyMaskRecipe)]
        if not places:
            places = [loader + 1]
            transforms.insert(loader + 1, ApplyMaskRecipe())
        self.pipeline = Compose(transforms)
        self._load = Compose(transforms[:loader + 1])
        self._change = Compose(transforms[:places[0] + 1])

    def __len__(self) -> int:
        return len(self.dataset)

    def info(self, index: int) -> dict[str, Any]:
        return self.dataset.get_data_info(index)

    def stored_mask(self, info: dict[str, Any]) -> Mask:
        """A sample's mask (H, W), uint8, as its file has it, 255 where unlabelled."""
        return self._load(dict(info))['gt_seg_map']

    def mask(self, info: dict[str, Any]) -> Mask:
        """A sample's mask (H, W), uint8, with the recipe that its info has, before what follows in the pipeline."""
        return self._change(dict(info))['gt_seg_map']


class MaskSource(Dataset, ABC):
    """Base of data sets that give the masks of another one, changed or chosen.

    It stands in ``synthesis.dataset`` like the data set inside, whose records and pipeline it uses, and in another mask
    source. (The data set inside is not called ``dataset``: by that name tools would look inside and miss the change.)

    Args:
        dataset: The data set with the masks, or its config.

    Attributes:
        reader: Reads the masks of the data set inside.
        pipeline: Its pipeline, with the place where masks are changed.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any]) -> None:
        self.reader = MaskReader(dataset)
        self.pipeline = self.reader.pipeline

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.reader.dataset.metainfo

    def full_init(self) -> None:
        """Read the records of the data set inside, if it has not yet."""
        self.reader.dataset.full_init()

    @abstractmethod
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """What the pipeline starts from."""

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return self.pipeline(self.get_data_info(idx))


class VariantSource(MaskSource):
    """Base of mask sources that change every mask in one or more ways.

    Samples come variant by variant, so that the first so many are of different masks. A variant follows from the seed,
    the mask's id and the variant's number alone.

    Args:
        dataset: The data set with the masks, or its config.
        num_variants: Variants of each mask.
        keep_original: Give the masks as they are, too, before all variants.
        seed: Another seed, other variants.

    Raises:
        ValueError: If ``num_variants`` is below 1.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any], num_variants: int, keep_original: bool, seed: int) -> None:
        if num_variants < 1:
            raise ValueError(f'`num_variants` must be at least 1, got {num_variants}.')
        super().__init__(dataset)
        self.num_variants = num_variants
        self.keep_original = keep_original
        self.seed = seed

    def __len__(self) -> int:
        return len(self.reader) * (self.num_variants + self.keep_original)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        index = range(len(self))[idx]
        turn, place = divmod(index, len(self.reader))
        info = self.reader.info(place) | dict(sample_idx=index)
        number = turn - self.keep_original
        if number < 0:
            return info
        name, step = self.variant(info, number)
        return with_step(info, f'{sample_id(info)}+{name}', step)

    @abstractmethod
    def variant(self, info: dict[str, Any], number: int) -> tuple[str, MaskStep]:
        """What variant ``number`` (from 0) of a sample is called, unique among its variants, and how it is made."""


def sample_id(info: Mapping[str, Any]) -> str:
    """A sample's id: its own, or the name of its mask where the data set gives none."""
    return info.get('sample_id') or Path(info['seg_map_path']).stem


def with_step(info: dict[str, Any], name: str, step: MaskStep) -> dict[str, Any]:
    """The info of a sample with one more step in its recipe, under a new id."""
    recipe = info.get('mask_recipe') or MaskRecipe(sample_id(info))
    return info | dict(sample_id=name, mask_recipe=recipe.then(step))


def class_ids(names: Sequence[str], known: Sequence[str] | None, option: str) -> list[int]:
    """The ids of class names.

    Raises:
        ValueError: If there are none, or some are not among the known ones.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f'`{option}` must list at least one class name, got {names!r}.')
    unknown = [name for name in names if name not in (known or ())]
    if unknown:
        raise ValueError(f'`{option}` has {", ".join(map(repr, unknown))}, which the data set does not know; its '
                         f'classes are {", ".join(known or ("not named",))}.')
    return sorted({list(known or ()).index(name) for name in names})
