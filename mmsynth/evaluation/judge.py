"""A judge: a frozen critic that predicts the classes of generated images, for several metrics at once.

Legend: B batch, D features, K classes, H W pixels.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from mmengine.device import get_device
from torch import Tensor

from mmsynth.evaluation.segmentor_features import PooledFeatures, read_with_features
from mmsynth.guidance import Critic, SegmentorCritic
from mmsynth.guidance.critic_weights import critic_hashes
from mmsynth.registry import MODELS
from mmsynth.utils.hashes import config_hash

_built: 'WeakValueDictionary[str, Judge]' = WeakValueDictionary()


@dataclass(frozen=True)
class Prediction:
    """What a judge predicts for one image.

    Attributes:
        classes: Class map (H, W), int64, on the CPU.
        features: Pooled features, a batch of one, on the CPU; None for a judge without, see :attr:`Judge.no_features`.
    """

    classes: Tensor
    features: PooledFeatures | None


class Judge:
    """A critic that scores generated images, with the hashes of its weights.

    Args:
        critic: A critic of images, on the device where it shall work.
        weights_sha256: Hash of its checkpoint, and for an ensemble of every member's; None for weights without a file.
        device: Where the images go.
    """

    def __init__(self, critic: Critic, weights_sha256: Sequence[str | None] | None = None,
                 device: torch.device | str = 'cpu') -> None:
        self.critic = critic
        self.weights_sha256 = weights_sha256
        self.num_classes: int = critic.num_classes
        self._device = device
        self._last: tuple[Sequence[Mapping[str, Any]], list[Prediction]] | None = None

    @classmethod
    def build(cls, settings: 'Mapping[str, Any] | Critic | Judge', device: str | None = None) -> 'Judge':
        """Build the judge of a config. Equal configs give one judge while it is in use, so that metrics share it.

        Args:
            settings: Config of a critic of images, such as ``dict(type='mmsynth.SegmentorCritic', config=…,
                checkpoint=…)``, or what it builds.
            device: cpu, cuda …; None for what the host would train on.

        Raises:
            ValueError: If a segmentor comes without its checkpoint, or the config builds something that does not take
                images.
        """
        if isinstance(settings, Judge):
            return settings
        if not isinstance(settings, Mapping):
            critic = _checked(settings)
            own = next((tensor.device for tensor in getattr(critic, 'segmentor', critic).parameters()), 'cpu')
            return cls(critic.to(device or own), None, device or own)
        device = device or get_device()
        if settings.get('checkpoint') is None and MODELS.get(settings['type']) is SegmentorCritic:
            raise ValueError('`judge` needs a `checkpoint`: a segmentor with random weights judges nothing. Give '
                             "dict(type='mmsynth.SegmentorCritic', config=…, checkpoint=…).")
        hashes = critic_hashes(settings)
        key = f'{config_hash(settings)} {hashes} {device}'
        judge = _built.get(key)
        if judge is None:
            critic = _checked(MODELS.build(dict(settings))).to(device)
            _built[key] = judge = cls(critic, hashes, device)
        return judge

    @property
    def no_features(self) -> str | None:
        """Why the judge has no features of an image, and the way out; None if it has them."""
        segmentor = getattr(self.critic, 'segmentor', None)
        if not hasattr(segmentor, 'decode_head'):
            return (f'the `judge` {type(self.critic).__name__} has no decode head to take features from; use a '
                    "mmsynth.SegmentorCritic of one of mmseg's segmentors")
        if (getattr(segmentor, 'test_cfg', None) or {}).get('mode') == 'slide':
            return ('the `judge` predicts an image in several windows, whose features belong to no one image; set '
                    "`model.test_cfg=dict(mode='whole')` in its config")
        return None

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ValueError if the judge knows another number of classes."""
        self.critic.check_num_classes(num_classes)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], masks: Sequence[Tensor], *,
                batch: Sequence[Mapping[str, Any]] | None = None) -> list[Prediction]:
        """Predict the classes of images.

        Args:
            images: Each (3, H, W), uint8, RGB; neighbours of one size go through the network together.
            masks: Each (H, W), integer; they say which pixels' features make up a class.
            batch: The samples that the images belong to: a second metric with the very same ones gets the first one's
                predictions. None computes.
        """
        if batch is not None and self._last is not None and self._last[0] is batch:
            return self._last[1]
        predictions = []
        for _, same_size in groupby(zip(images, masks, strict=True), key=lambda pair: tuple(pair[0].shape)):
            own_images, own_masks = (torch.stack(tuple(tensors)).to(self._device) for tensors in zip(*same_size))
            pixels = own_images.float() / 255  # (B, 3, H, W)
            if self.no_features:
                with self.critic.frozen_eval():
                    classes = self.critic.predict_logits(pixels).argmax(1)
                predictions += [Prediction(own.cpu(), None) for own in classes]
            else:
                classes, pooled = read_with_features(cast(SegmentorCritic, self.critic), pixels, own_masks)
                predictions += [Prediction(own.cpu(), pooled.row(index)) for index, own in enumerate(classes)]
        if batch is not None:
            self._last = batch, predictions
        return predictions


def choose_judge(judge: Critic | Mapping[str, Any] | None, config: str | Path | None,
                 checkpoint: str | Path | None) -> Critic | Mapping[str, Any] | None:
    """Choose between a judge and the config and weights of a segmentor; None if there is neither.

    Raises:
        ValueError: If both are given, or config or weights alone.
        FileNotFoundError: If the weights do not exist.
    """
    if (config is None) != (checkpoint is None):
        raise ValueError('`judge_config` and `judge_checkpoint` go together: the config and the weights of one '
                         f'segmentor; got {config or checkpoint} alone.')
    if config is None or checkpoint is None:
        return judge
    if judge is not None:
        raise ValueError('`judge` takes the place of `judge_config` and `judge_checkpoint`; got all of them, give one.')
    for name, path in dict(judge_config=config, judge_checkpoint=checkpoint).items():
        if not Path(path).exists():
            raise FileNotFoundError(f'`{name}` {path} does not exist; give the file of the judge.')
    return dict(type='mmsynth.SegmentorCritic', config=str(config), checkpoint=str(checkpoint))


def _checked(critic: object) -> Critic:
    if not isinstance(critic, Critic) or critic.input_type != 'images':
        raise ValueError('`judge` must be a critic that takes images (mmsynth.SegmentorCritic, or another '
                         f"mmsynth.guidance.Critic with `input_type` 'images'), got {type(critic).__name__}.")
    return critic
