"""How different the images are that were generated for one mask.

Legend: K classes, D features, S siblings, H W pixels.
"""
import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from mmsynth.evaluation.generated_metric import GeneratedImageMetric, Samples, generated_images, masks_of
from mmsynth.evaluation.judge import Judge
from mmsynth.evaluation.segmentor_features import PooledFeatures
from mmsynth.guidance import Critic
from mmsynth.registry import METRICS

THUMBNAIL_SIDE = 64


@dataclass(frozen=True)
class Sibling:
    """One image of a mask.

    Attributes:
        mask: What its siblings have in common: a hash of the mask.
        thumbnail: The image, averaged to at most 64 x 64 (3, h, w), uint8, RGB.
        features: Its features, a batch of one; None without a judge.
    """

    mask: str
    thumbnail: Tensor
    features: PooledFeatures | None


@METRICS.register_module()
class SiblingDiversity(GeneratedImageMetric):
    """Mean distance between the images that were generated for one and the same mask, averaged over the masks.

    Siblings are samples whose masks are equal pixel by pixel. Two distances, both 0 for equal images:

    - ``pixels``: root mean square difference of the images, each averaged to at most 64 x 64 pixels, in [0, 1].
    - ``features`` (with a segmentor as judge, in one piece): 1 - the cosine between the features of a class's
      pixels, in [0, 2], averaged over the classes of the mask; ``class.NAME`` is one class's own mean. It tells other
      looks of a class from other places of it, which siblings cannot have.

    ``masks`` is the number of masks with siblings; without any, nothing else is given. Diversity is no quality by
    itself: noise has most of it. Read it beside mask consistency.

    Args:
        judge: The segmentor whose features count; None for ``pixels`` alone. See :class:`GeneratedImageMetric`.
        guidance, allow_critic, device, collect_device, prefix, collect_dir: See :class:`GeneratedImageMetric`.
    """

    default_prefix = 'diversity'

    def __init__(self,
                 judge: Mapping[str, Any] | Critic | Judge | None = None,
                 *,
                 guidance: Mapping[str, Any] | None = None,
                 allow_critic: bool = False,
                 device: str | None = None,
                 collect_device: str = 'cpu',
                 prefix: str | None = None,
                 collect_dir: str | None = None) -> None:
        super().__init__(judge, guidance=guidance, allow_critic=allow_critic, device=device,
                         collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        if self.judge is not None and self.judge.no_features:
            print_log(f'SiblingDiversity: no `features`, for {self.judge.no_features}.', logger='current',
                      level=logging.WARNING)

    def process(self, data_batch: Any, data_samples: Samples) -> None:
        """Take in a batch."""
        images, masks = generated_images(data_samples), masks_of(data_samples)
        seen = [None] * len(images) if self.judge is None else [
            own.features for own in self.judge.predict(images, masks, batch=data_samples)]
        self.results += [Sibling(_mask_hash(mask), _thumbnail(image), features)
                         for image, mask, features in zip(images, masks, seen)]

    def compute_metrics(self, results: list[Sibling]) -> dict[str, float]:
        """The mean distances over all masks with siblings."""
        groups: dict[str, list[Sibling]] = defaultdict(list)
        for sibling in results:
            groups[sibling.mask].append(sibling)
        families = [group for group in groups.values() if len(group) > 1]
        values = dict(masks=float(len(families)))
        if not families:
            print_log('SiblingDiversity: no mask has more than one image; there is nothing to compare.',
                      logger='current', level=logging.WARNING)
            return values
        values['pixels'] = fmean(_pixel_distance(family) for family in families)
        return values | self._feature_distances(families) | self.role_entries()

    def _feature_distances(self, families: list[list[Sibling]]) -> dict[str, float]:
        by_class: dict[int, list[float]] = defaultdict(list)
        per_mask = []
        for family in (family for family in families if family[0].features is not None):
            distances = _class_distances(family)
            for index, distance in distances.items():
                by_class[index].append(distance)
            if distances:  # a mask without labels has no class to compare
                per_mask.append(fmean(distances.values()))
        if not per_mask:
            return {}
        return dict(features=fmean(per_mask)) | {
            f'class.{name}': fmean(by_class[index]) for index, name in enumerate(self.classes) if by_class[index]}


def _pixel_distance(family: list[Sibling]) -> float:
    """Mean over all pairs of the root mean square difference, in [0, 1]."""
    rows = torch.stack([sibling.thumbnail for sibling in family]).flatten(1).double() / 255  # (S, 3 h w)
    return float(F.pdist(rows).mean()) / rows.shape[1]**0.5


def _class_distances(family: list[Sibling]) -> dict[int, float]:
    """Per class of the mask the mean over all pairs of 1 - cosine."""
    seen = [sibling.features for sibling in family if sibling.features is not None]  # all, or none is compared
    features = torch.cat([own.classes for own in seen]).double()  # (S, K, D)
    present = seen[0].present[0]
    unit = F.normalize(features, dim=-1)
    # |u - v|² / 2 = 1 - cos, and 0 for two equal vectors of zeros too
    return {int(index): float(F.pdist(unit[:, index]).square().mean()) / 2 for index in present.nonzero()[:, 0]}


def _mask_hash(mask: Tensor) -> str:
    return hashlib.sha256(f'{tuple(mask.shape)}'.encode() + mask.numpy().tobytes()).hexdigest()


def _thumbnail(image: Tensor) -> Tensor:
    height, width = (min(side, THUMBNAIL_SIDE) for side in image.shape[-2:])
    return F.adaptive_avg_pool2d(image.float(), (height, width)).round().to(torch.uint8)
