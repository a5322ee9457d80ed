"""How well a segmentor reads the masks of synthetic images from the images: mask consistency.

The segmentor that judges must not be the one that guided; part of its answer would be its own wish.
"""
from collections.abc import Sequence
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


@torch.no_grad()
def mask_consistency(pool: Pool, judge: SegmentorCritic) -> Consistency:
    """Read every image of a pool and compare with its mask.

    Raises:
        ValueError: If the judge has another class count than the pool, or the pool is empty.
    """
    judge.check_num_classes(len(pool.classes))
    records = pool.records
    if not records:
        raise ValueError(f'pool {pool.root} is empty; there is nothing to judge.')
    totals = torch.zeros(4, judge.num_classes)
    for record in progress_bar(records, unit='img', title='judge'):
        totals += _areas(judge, pool.load_image(record), pool.load_mask(record))
    return _summary(totals)


def read_image(judge: SegmentorCritic, image: np.ndarray) -> np.ndarray:
    """The classes (H, W), uint8, that a judge sees in an image (H, W, 3), uint8, RGB."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return judge.read(pixels).argmax(1)[0].to(torch.uint8).numpy()


def _areas(judge: SegmentorCritic, image: np.ndarray, mask: np.ndarray) -> Tensor:
    reading = torch.from_numpy(read_image(judge, image)).long()
    areas: Sequence[Tensor] = IoUMetric.intersect_and_union(
        reading, torch.from_numpy(mask.astype(np.int64)), judge.num_classes, 255)
    return torch.stack([area.float() for area in areas])  # intersection, union, reading, mask


def _summary(totals: Tensor) -> Consistency:
    intersection, union, _, mask = totals
    iou = torch.where(union > 0, intersection / union, torch.nan)
    return Consistency(
        mean_iou=float(iou.nanmean()),
        accuracy=float(intersection.sum() / mask.sum()),
        class_iou=tuple(iou.tolist()))
