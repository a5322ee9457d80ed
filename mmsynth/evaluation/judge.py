"""A judge: a frozen segmentor that reads synthetic images for several measures at once.

Legend: B batch, D features, K classes, H W pixels.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from weakref import WeakValueDictionary

import torch
from mmengine.device import get_device
from torch import Tensor

from mmsynth.evaluation.segmentor_features import PooledFeatures, read_with_features
from mmsynth.guidance import SegmentorCritic
from mmsynth.registry import MODELS
from mmsynth.utils.hashes import config_hash, file_hash

_built: 'WeakValueDictionary[str, Judge]' = WeakValueDictionary()


@dataclass(frozen=True)
class View:
    """What a judge sees in one image.

    Attributes:
        reading: Classes (H, W), int64, on the CPU.
        features: Its features, a batch of one, on the CPU; None for a judge that reads an image in windows.
    """

    reading: Tensor
    features: PooledFeatures | None


class Judge:
    """A segmentor with the hash of its weights.

    Args:
        segmentor: The segmentor, on the device where it shall work.
        weights_sha256: Hash of its checkpoint; None for weights without a file.
        device: Where the images go.
    """

    def __init__(self, segmentor: SegmentorCritic, weights_sha256: str | None = None,
                 device: torch.device | str = 'cpu') -> None:
        self.segmentor = segmentor
        self.weights_sha256 = weights_sha256
        self.num_classes: int = segmentor.num_classes
        self._device = device
        self._last: tuple[Sequence[Mapping[str, Any]], list[View]] | None = None

    @classmethod
    def build(cls, settings: 'Mapping[str, Any] | SegmentorCritic | Judge', device: str | None = None) -> 'Judge':
        """The judge of a config. Equal configs give one judge while it is in use, so metrics can share it.

        Args:
            settings: ``dict(type='mmsynth.SegmentorCritic', config=…, checkpoint=…)``, or what that builds.
            device: cpu, cuda …; None for what the host would train on.

        Raises:
            ValueError: If the config has no checkpoint, or builds something that does not read images.
        """
        if isinstance(settings, Judge):
            return settings
        if not isinstance(settings, Mapping):
            own = next(_checked(settings).segmentor.parameters()).device
            return cls(settings.to(device or own), None, device or own)
        device = device or get_device()
        if settings.get('checkpoint') is None:
            raise ValueError('`judge` needs a `checkpoint`: a segmentor with random weights judges nothing. Give '
                             "dict(type='mmsynth.SegmentorCritic', config=…, checkpoint=…).")
        key = f'{config_hash(settings)} {file_hash(settings["checkpoint"])} {device}'
        judge = _built.get(key)
        if judge is None:
            segmentor = _checked(MODELS.build(dict(settings))).to(device)
            _built[key] = judge = cls(segmentor, file_hash(settings['checkpoint']), device)
        return judge

    @property
    def has_features(self) -> bool:
        """Whether its features can be told: not if it reads an image in several windows."""
        settings = getattr(self.segmentor.segmentor, 'test_cfg', None) or {}
        return settings.get('mode', 'whole') != 'slide'

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ValueError if the judge knows another number of classes."""
        self.segmentor.check_num_classes(num_classes)

    def look_at(self, samples: Sequence[Mapping[str, Any]], images: Sequence[Tensor],
                masks: Sequence[Tensor]) -> list[View]:
        """As :meth:`look`; a second metric that asks for the very same batch gets the first one's answer."""
        if self._last is None or self._last[0] is not samples:
            self._last = samples, self.look(images, masks)
        return self._last[1]

    def look(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[View]:
        """Read images.

        Args:
            images: Each (3, H, W), uint8, RGB; neighbours of one size are read together.
            masks: Each (H, W), integer; they say which pixels' features make up a class.
        """
        views = []
        for _, same_size in groupby(zip(images, masks, strict=True), key=lambda pair: tuple(pair[0].shape)):
            own_images, own_masks = (torch.stack(tuple(tensors)) for tensors in zip(*same_size))
            views += self._look(own_images, own_masks)
        return views

    @torch.no_grad()
    def _look(self, images: Tensor, masks: Tensor) -> list[View]:
        pixels = images.to(self._device).float() / 255  # (B, 3, H, W)
        if not self.has_features:
            return [View(reading.cpu(), None) for reading in self.segmentor.predict_logits(pixels).argmax(1)]
        readings, pooled = read_with_features(self.segmentor, pixels, masks.to(self._device))
        return [View(reading.cpu(), pooled.row(index)) for index, reading in enumerate(readings)]


def _checked(segmentor: object) -> SegmentorCritic:
    if not isinstance(segmentor, SegmentorCritic):
        raise ValueError(f'`judge` must be a mmsynth.SegmentorCritic, which reads images; got '
                         f'{type(segmentor).__name__}.')
    return segmentor
