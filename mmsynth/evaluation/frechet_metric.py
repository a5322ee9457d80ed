"""The Fréchet distance between synthetic and real images as a metric, over all and per class.

Legend: D features, K classes, H W pixels.
"""
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor

from mmsynth.evaluation.generated_metric import GeneratedImageMetric, Samples, generated_images, masks_of
from mmsynth.evaluation.inception import Inception
from mmsynth.evaluation.judge import Judge
from mmsynth.evaluation.segmentor_features import (
    MIN_CLASS_SAMPLES,
    FeatureSet,
    PooledFeatures,
    class_distances,
    feature_distance,
)
from mmsynth.guidance import Critic
from mmsynth.registry import DATASETS, METRICS
from mmsynth.utils import derive_seed, isolated_random_state, progress_bar


@dataclass(frozen=True)
class Row:
    """The features of one sample's image, and of the real image that came with its mask."""

    synthetic: PooledFeatures
    real: PooledFeatures | None


@METRICS.register_module()
class FrechetDistance(GeneratedImageMetric):
    """Fréchet distance of synthetic to real images, by a segmentor's features or by Inception's (the FID).

    Gives ``distance`` and the numbers of images ``images`` and ``real_images``; by a segmentor also ``class.NAME``, the
    distance between the features of a class's pixels, for classes that enough images hold. Compare distances only where
    the numbers are equal, see :func:`~mmsynth.evaluation.frechet_distance`. Nothing is given for fewer than two images.

    Args:
        judge: The segmentor whose features count; it must predict an image in one piece. See
            :class:`GeneratedImageMetric`.
        inception: File of the Inception weights, instead of ``judge``; see :mod:`mmsynth.evaluation.inception`.
        real: Config of a data set of real, labelled images. None takes the images that the batches hold beside the
            masks, as a validation set of labelled images does.
        num_real: Use so many of ``real``, spread over it; None for all.
        min_class_samples: Images of either side that must hold a class for its distance to be given.
        guidance, allow_critic, device, collect_device, prefix, collect_dir: See :class:`GeneratedImageMetric`.

    Raises:
        ValueError: If not exactly one of ``judge`` and ``inception`` is given, an option has no effect or is out of
            range, or the judge has no features.
    """

    default_prefix = 'frechet'

    def __init__(self,
                 judge: Mapping[str, Any] | Critic | Judge | None = None,
                 *,
                 inception: str | None = None,
                 real: Mapping[str, Any] | None = None,
                 num_real: int | None = None,
                 min_class_samples: int = MIN_CLASS_SAMPLES,
                 guidance: Mapping[str, Any] | None = None,
                 allow_critic: bool = False,
                 device: str | None = None,
                 collect_device: str = 'cpu',
                 prefix: str | None = None,
                 collect_dir: str | None = None) -> None:
        _check_options(judge, inception, real, num_real, min_class_samples)
        super().__init__(judge, guidance=guidance, allow_critic=allow_critic, device=device,
                         collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        if self.judge is not None and self.judge.no_features:
            raise ValueError(f'FrechetDistance: {self.judge.no_features}, or give `inception`.')
        self._device = device or get_device()
        self._inception = None if inception is None else Inception(inception).to(self._device)
        self._real_config = real
        self._num_real = num_real
        self._real: FeatureSet | None = None
        self.min_class_samples = min_class_samples

    def process(self, data_batch: Mapping[str, Any] | None, data_samples: Samples) -> None:
        """Take in a batch: per sample its features, and those of the real image beside it."""
        images, masks = generated_images(data_samples), masks_of(data_samples)
        synthetic = self._features(images, masks, data_samples)
        real: Sequence[PooledFeatures | None] = [None] * len(images)
        if self._real_config is None:
            real = self._features(_real_images(data_batch), masks)
        self.results += [Row(*pair) for pair in zip(synthetic, real, strict=True)]

    def compute_metrics(self, results: list[Row]) -> dict[str, float]:
        """The distances over all samples."""
        num_classes = 0 if self.judge is None else self.judge.num_classes
        synthetic, real = FeatureSet(num_classes), FeatureSet(num_classes)
        for row in results:
            synthetic.add(row.synthetic)
            if row.real is not None:
                real.add(row.real)
        if self._real_config is not None:
            real = self._real = self._real or self._read_real(num_classes)
        values = dict(images=float(len(synthetic)), real_images=float(len(real)))
        if min(len(synthetic), len(real)) < 2:
            print_log('FrechetDistance needs at least two images on both sides, got '
                      f'{len(synthetic)} synthetic and {len(real)} real; nothing is measured.', logger='current',
                      level=logging.WARNING)
            return values
        values['distance'] = feature_distance(real, synthetic)
        distances = class_distances(real, synthetic, self.min_class_samples)
        values |= {f'class.{name}': value for name, value in zip(self.classes, distances) if not isnan(value)}
        return values | self.role_entries()

    def _features(self, images: Sequence[Tensor], masks: Sequence[Tensor],
                  batch: Samples | None = None) -> list[PooledFeatures]:
        """Of images (3, H, W), uint8, RGB; with ``batch``, the judge's reading is shared with other metrics."""
        if self.judge is not None:
            seen = self.judge.predict(images, masks, batch=batch)
            return [own.features for own in seen if own.features is not None]
        assert self._inception is not None  # there is one of the two
        return [self._inception.features(image[None].to(self._device)) for image in images]

    def _read_real(self, num_classes: int) -> FeatureSet:
        features = FeatureSet(num_classes)
        assert self._real_config is not None
        dataset = build_real(self._real_config, self.classes)
        for image, mask in progress_bar(RealSamples(dataset, self._num_real), unit='img', title='real images'):
            for pooled in self._features([image], [mask]):
                features.add(pooled)
        return features


def build_real(settings: Mapping[str, Any], classes: Sequence[str]) -> Any:
    """A data set of real, labelled images; names without a scope are mmseg's.

    Raises:
        ValueError: If its classes are others.
    """
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(dict(settings))
    own = tuple(dataset.metainfo.get('classes') or ())
    if own != tuple(classes):
        raise ValueError(f'`real` has the classes {", ".join(own) or "(none named)"}; the masks have '
                         f'{", ".join(classes)}. Give real images of the same classes, in the same order.')
    return dataset


class RealSamples:
    """Evenly spread samples of a data set: images (3, H, W), uint8, RGB, with masks (H, W), int64.

    The random transforms of the pipeline are drawn under a seed of the image's own, so the samples are always the same.

    Args:
        dataset: Gives what the host packs.
        num: How many, at most; None for all.
    """

    def __init__(self, dataset: Any, num: int | None = None) -> None:
        self._dataset = dataset
        self._count = len(dataset) if num is None else min(num, len(dataset))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in (number * len(self._dataset) // self._count for number in range(self._count)):
            with isolated_random_state(derive_seed(0, 'real', index)):
                item = self._dataset[index]
            yield _real_images(dict(inputs=[item.get('inputs')]))[0], item['data_samples'].gt_sem_seg.data[0].long()


def _real_images(data_batch: Mapping[str, Any] | None) -> list[Tensor]:
    """The images of a batch as the host packs them (3, H, W), uint8, BGR, turned to RGB."""
    images = (data_batch or {}).get('inputs')
    if images is None or any(image is None for image in images):
        raise ValueError('FrechetDistance: there are no real images to compare with. Load them beside the masks '
                         "(LoadImageFromFile before PackSynthInputs in the pipeline), or give `real`, the config of a "
                         'data set of labelled images.')
    if any(image.dtype != torch.uint8 for image in images):
        raise ValueError('FrechetDistance: real images must come as the host loads them, uint8 in [0, 255]; take '
                         'normalising transforms out of the pipeline.')
    return [image.flip(0) for image in images]


def _check_options(judge: object, inception: str | None, real: object, num_real: int | None,
                   min_class_samples: int) -> None:
    if (judge is None) == (inception is None):
        raise ValueError('FrechetDistance: exactly one of `judge` and `inception` must be given, got '
                         f'{"neither" if judge is None else "both"}.')
    if num_real is not None and (real is None or num_real < 2):
        raise ValueError(f'FrechetDistance: `num_real` goes with `real` and must be at least 2, got {num_real}'
                         f'{" without `real`" if real is None else ""}.')
    if min_class_samples < 2:
        raise ValueError('FrechetDistance: `min_class_samples` must be at least 2, which a covariance needs, got '
                         f'{min_class_samples}.')
