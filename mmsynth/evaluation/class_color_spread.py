"""How much the colour of a class differs from image to image.

Legend: K classes.
"""
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mmsynth.evaluation.generated_metric import GeneratedImageMetric, Samples, generated_images, masks_of
from mmsynth.registry import METRICS


@METRICS.register_module()
class ClassColorSpread(GeneratedImageMetric):
    """Standard deviation, over the images, of the mean colour of a class's pixels, in levels of 0 to 255.

    Gives ``class.NAME``, the mean over red, green and blue, for each class that at least two images show with
    ``min_pixels``, and ``spread``, the mean over these classes. What makes images easy to read also makes a class look
    alike in all of them, and takes from what a segmentor could learn: read it beside mask consistency.

    Args:
        min_pixels: An image with fewer pixels of a class does not count for it.
        collect_device, prefix, collect_dir: See :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ValueError: If ``min_pixels`` is below 1.
    """

    default_prefix = 'colors'

    def __init__(self, *, min_pixels: int = 50, collect_device: str = 'cpu', prefix: str | None = None,
                 collect_dir: str | None = None) -> None:
        super().__init__(None, guidance=None, allow_critic=False, device=None, collect_device=collect_device,
                         prefix=prefix, collect_dir=collect_dir)
        if min_pixels < 1:
            raise ValueError(f'ClassColorSpread: `min_pixels` must be at least 1, got {min_pixels}.')
        self.min_pixels = min_pixels

    def process(self, data_batch: Any, data_samples: Samples) -> None:
        """Take in a batch: per image the pixels of each class (K,) and the sums of their colours (3, K)."""
        for image, mask in zip(generated_images(data_samples), masks_of(data_samples)):
            known = (mask >= 0) & (mask < len(self.classes))
            labels, colors = mask[known].long(), image[:, known].double()
            self.results.append((
                torch.bincount(labels, minlength=len(self.classes)),
                torch.stack([torch.bincount(labels, channel, len(self.classes)) for channel in colors])))

    def compute_metrics(self, results: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The spread of every class and their mean."""
        values = {}
        for index, name in enumerate(self.classes):
            means = [sums[:, index] / pixels[index] for pixels, sums in results if pixels[index] >= self.min_pixels]
            if len(means) > 1:
                values[f'class.{name}'] = float(torch.stack(means).std(0).mean())
        return dict(spread=fmean(values.values())) | values if values else {}
