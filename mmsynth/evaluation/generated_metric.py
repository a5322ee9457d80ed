"""What the metrics of generated images share: where image and mask stand in a sample, and the judge."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmsynth.evaluation.judge import Judge
from mmsynth.evaluation.judge_role import CRITIC, check_judge_of_guidance, running_guidance
from mmsynth.guidance import SegmentorCritic

Samples = Sequence[Mapping[str, Any]]


class GeneratedImageMetric(BaseMetric):
    """A metric of what a generator generated, one result per sample, so that ranks and batches make no difference.

    Samples are the host's: dicts with ``generated_img`` and ``gt_sem_seg``, as a generator's ``val_step`` or
    :func:`mmsynth.apis.evaluate_pool` makes them. Where a judge is given, it must not be the critic of the guidance:
    a run stops at the first batch if it is, or before it starts if the metric is told ``guidance``.

    Args:
        judge: Config of a :class:`~mmsynth.guidance.SegmentorCritic` with its checkpoint, or what it builds; None for a
            metric that works without.
        guidance: Config of the guidance that the images are, or will be, made with; {} for none; None for
            ``synthesis.guidance`` of the running config.
        allow_critic: Let the critic judge; the results then hold ``judge_is_critic`` = 1.
        device: Where the judge works; None for the host's choice.
        collect_device, prefix, collect_dir: See :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ValueError: If the judge is the critic, or its classes are not the data set's.
    """

    def __init__(self, judge: Mapping[str, Any] | SegmentorCritic | Judge | None, *,
                 guidance: Mapping[str, Any] | None, allow_critic: bool, device: str | None, collect_device: str,
                 prefix: str | None, collect_dir: str | None) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        self.judge = None if judge is None else Judge.build(judge, device)
        self._allow_critic = allow_critic
        self._role: str | None = None
        if guidance is not None:
            self._check_role(guidance)

    @property
    def dataset_meta(self) -> dict | None:
        """The data set's meta information; the loop sets it before anything runs."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict | None) -> None:
        self._dataset_meta = dataset_meta
        if self.judge is not None:
            self.judge.check_num_classes(len(self.classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """The data set's class names.

        Raises:
            ValueError: If it has none.
        """
        classes = (self._dataset_meta or {}).get('classes')
        if not classes:
            raise ValueError(f'{type(self).__name__} needs the class names; give the data set of the `val_dataloader` '
                             'a `metainfo` with `classes`, or a `meta_file`.')
        return tuple(classes)

    def check_role(self) -> None:
        """Once, hold the judge against the running config's critic; call this before judging.

        Raises:
            ValueError: If they are one.
        """
        if self.judge is not None and self._role is None:
            self._check_role(running_guidance() or {})

    def role_entries(self) -> dict[str, float]:
        """What the results must say about the judge."""
        return {'judge_is_critic': 1.0} if self._role == CRITIC else {}

    def _check_role(self, guidance: Mapping[str, Any]) -> None:
        if self.judge is not None:
            self._role = check_judge_of_guidance(guidance, self.judge.weights_sha256, allow_critic=self._allow_critic)


def generated_images(samples: Samples) -> list[Tensor]:
    """The generated images, each (3, H, W), uint8, RGB.

    Raises:
        ValueError: If a sample has none.
    """
    if any('generated_img' not in sample for sample in samples):
        raise ValueError('a sample has no `generated_img`: this metric is for what a generator generates. Use it in the '
                         '`val_evaluator` of a generator, or tools/analysis_tools/evaluate_pool.py.')
    return [sample['generated_img']['data'].cpu() for sample in samples]


def masks_of(samples: Samples) -> list[Tensor]:
    """The masks that were generated, each (H, W), int64."""
    return [sample['gt_sem_seg']['data'].squeeze(0).long().cpu() for sample in samples]


def pool_sample(id: str, image: np.ndarray, mask: np.ndarray, trusted: np.ndarray | None = None) -> dict[str, Any]:
    """A stored sample in the form that metrics take.

    Args:
        id: Its id.
        image: (H, W, 3), uint8, RGB.
        mask: (H, W), the classes that were generated.
        trusted: (H, W), what of the mask a filter left; None if none ran.
    """
    sample: dict[str, Any] = dict(
        sample_id=id,
        generated_img=dict(data=torch.from_numpy(np.array(image)).permute(2, 0, 1)),
        gt_sem_seg=dict(data=torch.from_numpy(mask.astype(np.int64))[None]))
    if trusted is not None:
        sample['trusted_sem_seg'] = dict(data=torch.from_numpy(trusted.astype(np.int64))[None])
    return sample
