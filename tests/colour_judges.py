"""Judges that see colours, for closed forms: of classes, and of features; and samples as metrics take them."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric, Evaluator
from torch import Tensor, nn

from mmsynth.evaluation import pool_sample
from mmsynth.guidance import Critic

CLASSES = ('field', 'road', 'water')
PALETTE = ((150, 220, 90), (250, 230, 120), (50, 110, 220))
IGNORED = 255


class ColourJudge(Critic):
    """Sees in a pixel the class whose palette colour is nearest: a critic that is no segmentor of mmseg's."""

    num_classes, ignore_index = len(CLASSES), IGNORED

    def predict_logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) for images (B, 3, H, W) in [0, 1], RGB."""
        colours = torch.tensor(PALETTE).float()[None, :, :, None, None] / 255  # (1, K, 3, 1, 1)
        return -(images[:, None] - colours).square().sum(2)


class Colours(nn.Module):
    """A segmentor whose features are the mean colours of 2×2 cells.

    Args:
        last_layer: Whether its head ends in ``conv_seg``; otherwise its features are doubled colours, by the backbone.
        windows: How often it looks at an image.
        padded: Side that images are padded to, with ones.
    """

    def __init__(self, last_layer: bool = True, windows: int = 1, padded: int = 4) -> None:
        super().__init__()
        self.with_neck = False
        self.backbone = nn.AvgPool2d(2)
        self.decode_head = nn.Module()
        self.decode_head.in_index = 0
        if last_layer:
            self.decode_head.conv_seg = nn.Conv2d(3, len(CLASSES), 1, bias=False)
            self.decode_head.conv_seg.weight.data = torch.eye(len(CLASSES))[..., None, None]
        self.windows, self.padded = windows, padded

    def judge(self) -> Critic:
        judge = Critic()
        judge.segmentor, judge.num_classes, judge.ignore_index = self, len(CLASSES), IGNORED
        judge.predict_logits = self.predict_logits
        return judge

    def predict_logits(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        inputs = F.pad(images, (0, self.padded - width, 0, self.padded - height), value=1.0)
        for _ in range(self.windows):
            cells = self.backbone(inputs)
        last_layer = getattr(self.decode_head, 'conv_seg', nn.Identity())
        return F.interpolate(last_layer(cells), scale_factor=2)[..., :height, :width]


def coloured(mask: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) of a mask in which every class has its palette colour."""
    return np.asarray([*PALETTE, (0, 0, 0)], np.uint8)[np.where(mask == IGNORED, len(PALETTE), mask)]


def halves(left: int, right: int, side: int = 8) -> np.ndarray:
    """A mask (side, side) of two classes."""
    mask = np.full((side, side), left, np.uint8)
    mask[:, side // 2:] = right
    return mask


def generated(*pairs: tuple[np.ndarray, np.ndarray]) -> list[dict[str, Any]]:
    """Samples of (image (H, W, 3), mask) pairs."""
    return [pool_sample(str(index), image, mask) for index, (image, mask) in enumerate(pairs)]


def measure(metric: BaseMetric, samples: Sequence[dict], batch_size: int = 2, real: Sequence[np.ndarray] = (),
            classes: Sequence[str] = CLASSES) -> dict[str, float]:
    """What a metric says of samples in batches; ``real`` are the images (H, W, 3), RGB, beside the masks."""
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=tuple(classes))
    for start in range(0, len(samples), batch_size):
        inputs = [torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)
                  for image in real[start:start + batch_size]]
        evaluator.process(list(samples[start:start + batch_size]), dict(inputs=inputs) if inputs else {})
    return evaluator.evaluate(len(samples))
