"""Data sets whose random transforms follow from the draw, and the host's LoveDA as one of them."""
from typing import Any

import cv2
from mmseg.datasets import LoveDADataset as HostLoveDADataset

from mmsynth.datasets.samplers.draws import Draw
from mmsynth.registry import DATASETS
from mmsynth.utils import isolated_random_state


class SeededItems:
    """Mixin for mmengine data sets: the transforms of a :class:`Draw` run under its seed."""

    def __getitem__(self, index: int) -> Any:
        """Load a sample; a draw leaves the global random state as it was.

        Raises:
            ValueError: If its image is larger than OpenCV reads.
        """
        host: Any = super()  # the data set that this is mixed into
        try:
            if not isinstance(index, Draw):
                return host.__getitem__(index)
            with isolated_random_state(index.seed, devices=False):
                return host.__getitem__(int(index))
        except cv2.error as error:  # the host's LoadImageFromFile says of every other damage which file has it
            path = host.get_data_info(int(index)).get('img_path')
            raise ValueError(f'image {path} cannot be read as an image: {error}.') from error


@DATASETS.register_module()
class LoveDADataset(SeededItems, HostLoveDADataset):
    """mmseg's LoveDA data set, with transforms that follow from the draw."""
