"""What a segmentor sees in images: the features that its last layer classifies, pooled per image and per class.

Legend: B batch, D features, K classes, H W pixels, h w cells of the feature map.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsynth.evaluation.frechet import Gaussian, frechet_distance
from mmsynth.guidance import SegmentorCritic

MIN_CLASS_SAMPLES = 10


@dataclass(frozen=True)
class PooledFeatures:
    """Features of a batch.

    Attributes:
        images: Mean over an image's pixels (B, D).
        classes: Mean over the pixels of a class in an image (B, K, D); 0 where the class is absent.
        present: Which classes an image's mask holds (B, K), bool.
    """

    images: Tensor
    classes: Tensor
    present: Tensor

    def row(self, index: int) -> 'PooledFeatures':
        """One image of the batch, still as a batch, on the CPU."""
        return PooledFeatures(*(values[index:index + 1].cpu() for values in (self.images, self.classes, self.present)))


@torch.no_grad()
def read_with_features(judge: SegmentorCritic, images: Tensor, masks: Tensor) -> tuple[Tensor, PooledFeatures]:
    """Read images and pool what the segmentor sees in them.

    The features are the input of the decode head's last convolution; for a head without one, the level of the backbone
    (or neck) that the head's ``in_index`` names, the last if there are several. A cell of the feature map counts for a
    class by the share of its pixels that are of the class, so thin roads count too.

    Args:
        judge: The segmentor.
        images: (B, 3, H, W), float, [0, 1], RGB.
        masks: (B, H, W), integer; what is no class of the judge's is unlabelled and counts for the image only.

    Returns:
        The classes read (B, H, W), int64, and the features.

    Raises:
        ValueError: If the segmentor reads an image in several windows.
    """
    taps = _Taps(judge.segmentor)
    try:
        logits = judge.predict_logits(images)
    finally:
        taps.remove()
    features, padded = taps.features(), taps.size
    return logits.argmax(1), _pool(features.float(), masks.to(features.device), judge.num_classes, padded)


class FeatureSet:
    """The pooled features of many images, on the CPU.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self._images: list[Tensor] = []
        self._classes: list[list[Tensor]] = [[] for _ in range(num_classes)]

    def __len__(self) -> int:
        """Number of images."""
        return sum(map(len, self._images))

    def add(self, pooled: PooledFeatures) -> None:
        """Take in a batch."""
        self._images.append(pooled.images.cpu())
        for index, rows in enumerate(self._classes):
            rows.append(pooled.classes[:, index][pooled.present[:, index]].cpu())

    @property
    def images(self) -> Tensor:
        """One row per image (N, D)."""
        return torch.cat(self._images)

    @property
    def classes(self) -> list[Tensor]:
        """Per class one row for each image that holds it (N_k, D)."""
        return [torch.cat(rows) for rows in self._classes]

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images that hold each class (K)."""
        return tuple(sum(map(len, rows)) for rows in self._classes)


def feature_distance(first: FeatureSet, second: FeatureSet) -> float:
    """Fréchet distance between the images of two sets.

    Raises:
        ValueError: If a set has fewer than two images.
    """
    return frechet_distance(Gaussian.fit(first.images), Gaussian.fit(second.images))


def class_distances(first: FeatureSet, second: FeatureSet, min_samples: int = MIN_CLASS_SAMPLES) -> tuple[float, ...]:
    """Per class the Fréchet distance between its features in two sets (K).

    NaN where one of the sets has fewer than ``min_samples`` images with the class: see :func:`frechet_distance` for
    what few samples do.

    Raises:
        ValueError: If ``min_samples`` is below 2.
    """
    if min_samples < 2:
        raise ValueError(f'`min_samples` must be at least 2, which a covariance needs, got {min_samples}.')
    pairs = zip(first.classes, second.classes, strict=True)
    return tuple(frechet_distance(Gaussian.fit(own), Gaussian.fit(other))
                 if min(len(own), len(other)) >= min_samples else nan for own, other in pairs)


class _Taps:
    """Hooks that note what goes through a segmentor: the size of its input, and its features."""

    def __init__(self, segmentor: nn.Module) -> None:
        head: Any = segmentor.decode_head
        self._head: Any = head[-1] if isinstance(head, nn.ModuleList) else head  # a cascade's last stage
        self._inputs: list[Tensor] = []
        self._levels: list[Sequence[Tensor]] = []
        self._features: list[Tensor] = []
        backbone: Any = segmentor.backbone
        trunk: Any = segmentor.neck if segmentor.with_neck else backbone
        # not on the head itself: mmseg calls its `forward` past all hooks
        self._handles = [
            backbone.register_forward_pre_hook(lambda _, given: self._inputs.append(given[0])),
            trunk.register_forward_hook(lambda _, given, levels: self._levels.append(levels))]
        last_layer = getattr(self._head, 'conv_seg', None)
        if last_layer is not None:
            self._handles.append(last_layer.register_forward_pre_hook(
                lambda _, given: self._features.append(given[0])))

    def remove(self) -> None:
        """Leave the segmentor as it was."""
        for handle in self._handles:
            handle.remove()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the segmentor was given, padding included."""
        height, width = self._inputs[0].shape[-2:]
        return height, width

    def features(self) -> Tensor:
        """(B, D, h, w)."""
        if len(self._inputs) != 1:
            raise ValueError(f'the judge reads an image in {len(self._inputs)} windows, whose features belong to no '
                             "one image; set `model.test_cfg=dict(mode='whole')` in its config.")
        if self._features:
            return self._features[-1]
        index = self._head.in_index
        return self._levels[0][index[-1] if isinstance(index, (list, tuple)) else index]


def _pool(features: Tensor, masks: Tensor, num_classes: int, padded: tuple[int, int]) -> PooledFeatures:
    """Means of features (B, D, h, w); the masks (B, H, W) lie top left in an input of size ``padded``."""
    known = (masks >= 0) & (masks < num_classes)
    one_hot = F.one_hot(masks.long() * known, num_classes) * known[..., None]  # (B, H, W, K)
    areas = torch.cat([torch.ones_like(one_hot[..., :1]), one_hot], dim=-1).movedim(-1, 1).float()  # (B, 1 + K, H, W)
    areas = F.pad(areas, (0, padded[1] - areas.shape[-1], 0, padded[0] - areas.shape[-2]))
    weights = F.adaptive_avg_pool2d(areas, (features.shape[-2], features.shape[-1]))  # (B, 1 + K, h, w)
    totals = weights.sum((2, 3))
    means = torch.einsum('bkhw,bdhw->bkd', weights, features) / totals.clamp_min(1e-12)[..., None]
    return PooledFeatures(images=means[:, 0], classes=means[:, 1:], present=totals[:, 1:] > 0)
