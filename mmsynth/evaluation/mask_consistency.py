"""Mask consistency: how well a segmentor finds the masks in the images that were generated for them.

The segmentor that judges must not be the one that guided: the images were optimised for that one.

Legend: K classes, H W pixels.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from torch import Tensor

from mmsynth.evaluation.generated_metric import GeneratedImageMetric, Samples, generated_images, masks_of
from mmsynth.evaluation.judge import Judge
from mmsynth.guidance import Critic
from mmsynth.pool import Pool
from mmsynth.registry import METRICS
from mmsynth.utils import progress_bar
from mmsynth.utils.labels import IGNORE_INDEX


@METRICS.register_module()
class MaskConsistency(GeneratedImageMetric):
    """Mask consistency while a generator trains (``val_evaluator``) or of a pool, in percent.

    Gives ``mIoU``, ``aAcc`` (share of pixels read right), ``mAcc`` (mean over the classes of the share of a class's
    pixels read right) and ``IoU.NAME`` per class, as mmseg's ``IoUMetric`` defines them, but not rounded. Classes that
    neither masks nor readings hold are left out, and so is everything where no pixel is labelled.

    Args:
        judge: The segmentor that reads; see :class:`GeneratedImageMetric` for it and for the other options.
        ignore_index: Value of unlabelled pixels in the masks.
        guidance, allow_critic, device, collect_device, prefix, collect_dir: See :class:`GeneratedImageMetric`.
    """

    default_prefix = 'consistency'

    def __init__(self,
                 judge: Mapping[str, Any] | Critic | Judge,
                 *,
                 ignore_index: int = IGNORE_INDEX,
                 guidance: Mapping[str, Any] | None = None,
                 allow_critic: bool = False,
                 device: str | None = None,
                 collect_device: str = 'cpu',
                 prefix: str | None = None,
                 collect_dir: str | None = None) -> None:
        super().__init__(judge, guidance=guidance, allow_critic=allow_critic, device=device,
                         collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Samples) -> None:
        """Take in a batch: per sample the areas (4, K), int64."""
        assert self.judge is not None
        masks = masks_of(data_samples)
        predictions = self.judge.predict(generated_images(data_samples), masks, batch=data_samples)
        self.results += [class_areas(own.classes, mask, self.judge.num_classes, self.ignore_index).long()
                         for own, mask in zip(predictions, masks)]

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """The measures over all samples."""
        assert self.judge is not None
        agreement = Consistency.of_areas(torch.stack([torch.zeros(4, self.judge.num_classes).long(), *results]).sum(0))
        values = dict(mIoU=agreement.mean_iou, aAcc=agreement.accuracy, mAcc=agreement.mean_accuracy)
        values |= {f'IoU.{name}': iou for name, iou in zip(self.classes, agreement.class_iou)}
        return {name: 100 * value for name, value in values.items() if not isnan(value)} | self.role_entries()


@dataclass(frozen=True)
class Consistency:
    """Agreement of a judge's readings with the masks, over all pixels that are not ignored.

    Attributes:
        mean_iou: Mean over the classes that masks or readings hold, in [0, 1].
        accuracy: Share of pixels read right, in [0, 1].
        class_iou: Per class, NaN where a class never occurs.
        mean_accuracy: Mean over the classes of the masks of the share of their pixels read right, in [0, 1]; NaN where
            it was not computed.
    """

    mean_iou: float
    accuracy: float
    class_iou: tuple[float, ...]
    mean_accuracy: float = nan

    @classmethod
    def of_areas(cls, areas: Tensor) -> 'Consistency':
        """The agreement that areas (4, K) give, see :func:`class_areas`; NaN where they are empty."""
        intersection, union, _, mask = areas.double()
        iou = torch.where(union > 0, intersection / union, torch.nan)
        recall = torch.where(mask > 0, intersection / mask, torch.nan)
        return cls(
            mean_iou=float(iou.nanmean()),
            accuracy=float(intersection.sum() / mask.sum()),
            class_iou=tuple(iou.tolist()),
            mean_accuracy=float(recall.nanmean()))


class ConsistencyMeter:
    """Adds up how readings agree with masks.

    Args:
        num_classes: K.
        ignore_index: Value of unlabelled pixels in the masks; they do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._totals = torch.zeros(4, num_classes, dtype=torch.float64)

    def update(self, readings: Tensor, masks: Tensor) -> None:
        """Take in readings and masks of one shape, integer class ids."""
        self._totals += class_areas(readings, masks, self.num_classes, self.ignore_index)

    def compute(self) -> Consistency:
        """The agreement over all that was taken in."""
        return Consistency.of_areas(self._totals)


def class_areas(readings: Tensor, masks: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Pixels of intersection, union, reading and mask per class (4, K), where the masks are labelled."""
    return torch.stack(IoUMetric.intersect_and_union(
        readings.cpu().long(), masks.cpu().long(), num_classes, ignore_index))


def mask_consistency(pool: Pool, judge: Critic) -> Consistency:
    """Read every image of a pool and compare with its mask.

    Raises:
        ValueError: If the judge has another class count than the pool, or the pool is empty.
    """
    judge.check_num_classes(len(pool.classes))
    records = pool.records
    if not records:
        raise ValueError(f'pool {pool.root} is empty; there is nothing to judge.')
    meter = ConsistencyMeter(judge.num_classes)
    for record in progress_bar(records, unit='img', title='judge'):
        reading = read_image(judge, pool.load_image(record))
        meter.update(torch.from_numpy(reading), torch.from_numpy(pool.load_mask(record).astype(np.int64)))
    return meter.compute()


def read_image(judge: Critic, image: np.ndarray) -> np.ndarray:
    """The classes (H, W), uint8, that a judge sees in an image (H, W, 3), uint8, RGB."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad(), judge.frozen_eval():
        return judge.predict_logits(pixels).argmax(1)[0].to(torch.uint8).numpy()
