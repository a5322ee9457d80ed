"""How well a segmentor reads the masks of synthetic images from the images: mask consistency.

The segmentor that judges must not be the one that guided; part of its answer would be its own wish.
"""
from dataclasses import dataclass

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from torch import Tensor

from mmsynth.guidance import SegmentorCritic
from mmsynth.pool import Pool
from mmsynth.utils import progress_bar


@dataclass(frozen=True)
class Consistency:
    """Agreement of a judge's readings with the masks, over all pixels that are not ignored.

    Attributes:
        mean_iou: Mean over the classes that masks or readings hold, in [0, 1].
        accuracy: Share of pixels read right, in [0, 1].
        class_iou: Per class, NaN where a class never occurs.
    """

    mean_iou: float
    accuracy: float
    class_iou: tuple[float, ...]


class ConsistencyMeter:
    """Adds up how readings agree with masks.

    Args:
        num_classes: K.
        ignore_index: Value of unlabelled pixels in the masks; they do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._totals = torch.zeros(4, num_classes, dtype=torch.float64)  # intersection, union, reading, mask

    def update(self, readings: Tensor, masks: Tensor) -> None:
        """Take in readings and masks of one shape, integer class ids."""
        areas = IoUMetric.intersect_and_union(
            readings.cpu().long(), masks.cpu().long(), self.num_classes, self.ignore_index)
        self._totals += torch.stack(areas)

    def compute(self) -> Consistency:
        """The agreement over all that was taken in."""
        intersection, union, _, mask = self._totals
        iou = torch.where(union > 0, intersection / union, torch.nan)
        return Consistency(
            mean_iou=float(iou.nanmean()),
            accuracy=float(intersection.sum() / mask.sum()),
            class_iou=tuple(iou.tolist()))


def mask_consistency(pool: Pool, judge: SegmentorCritic) -> Consistency:
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


def read_image(judge: SegmentorCritic, image: np.ndarray) -> np.ndarray:
    """The classes (H, W), uint8, that a judge sees in an image (H, W, 3), uint8, RGB."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return judge.read(pixels).argmax(1)[0].to(torch.uint8).numpy()
