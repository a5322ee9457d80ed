"""How the pixels of masks spread over the classes, before and after a filter.

Legend: K classes, H W pixels.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsynth.evaluation.generated_metric import GeneratedImageMetric, Samples, masks_of
from mmsynth.registry import METRICS


@METRICS.register_module()
class ClassHistogram(GeneratedImageMetric):
    """Share of every class in the labelled pixels of the masks, in percent.

    Gives ``before.NAME`` for the masks of the samples and ``before.unlabelled``, the share of all pixels without a
    label. Where the samples say what a filter left of their masks (``trusted_sem_seg``: a pool, through
    ``tools/analysis_tools/evaluate_pool.py``), also ``after.NAME`` and ``after.unlabelled`` of that; a sample that was
    filtered out as a whole counts as unlabelled. Classes without a pixel are given as 0; without any labelled pixel
    there are no shares.

    Args:
        collect_device, prefix, collect_dir: See :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'classes'

    def __init__(self, *, collect_device: str = 'cpu', prefix: str | None = None,
                 collect_dir: str | None = None) -> None:
        super().__init__(None, guidance=None, allow_critic=False, device=None, collect_device=collect_device,
                         prefix=prefix, collect_dir=collect_dir)

    def process(self, data_batch: Any, data_samples: Samples) -> None:
        """Take in a batch: per sample the pixels of each class and without one, before and after."""
        num_classes = len(self.classes)
        for sample, mask in zip(data_samples, masks_of(data_samples)):
            trusted = sample.get('trusted_sem_seg')
            after = None if trusted is None else count_classes(trusted['data'], num_classes)
            self.results.append((count_classes(mask, num_classes), after))

    def compute_metrics(self, results: list[tuple[Tensor, Tensor | None]]) -> dict[str, float]:
        """The shares over all samples.

        Raises:
            ValueError: If only some of the samples were filtered.
        """
        before, after = ([pixels for pixels in side if pixels is not None] for side in zip(*results)) \
            if results else ([], [])
        if after and len(after) < len(before):
            raise ValueError(f'ClassHistogram: {len(after)} of {len(before)} samples say what a filter left of their '
                             'masks; run the filter over all of the pool, or over none.')
        return self._shares('before', before) | self._shares('after', after)

    def _shares(self, name: str, counts: Sequence[Tensor]) -> dict[str, float]:
        if not counts:
            return {}
        *pixels, unlabelled = torch.stack(list(counts)).sum(0).tolist()
        labelled = sum(pixels)
        shares = {f'{name}.unlabelled': 100 * unlabelled / (labelled + unlabelled)}
        if not labelled:
            return shares
        return {f'{name}.{own}': 100 * count / labelled
                for own, count in zip(self.classes, pixels)} | shares


def count_classes(mask: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class, and last of those that are of none (K + 1), int64, of an integer mask of any shape."""
    known = (mask >= 0) & (mask < num_classes)
    return torch.bincount(torch.where(known, mask.long(), num_classes).flatten().cpu(), minlength=num_classes + 1)
