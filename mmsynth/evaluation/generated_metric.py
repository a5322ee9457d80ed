"""What the metrics of generated images share: where image and mask stand in a sample, and the judge."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmsynth.evaluation.judge import Judge
from mmsynth.evaluation.judge_role import CRITIC, check_judge_of_guidance
from mmsynth.guidance import Critic

Samples = Sequence[Mapping[str, Any]]


class GeneratedImageMetric(BaseMetric):
    """Base of metrics of generated images: one result per sample, so that ranks and batches make no difference.

    Samples are the host's: dicts with ``generated_img`` and ``gt_sem_seg``, as a generator's ``val_step`` or
    :func:`mmsynth.apis.evaluate_pool` makes them. A judge must not be the critic of the guidance, so with ``judge`` the
    ``guidance`` must be given.

    Args:
        judge: Config of a critic of images with its checkpoint (:class:`~mmsynth.guidance.SegmentorCritic`), or what it
            builds; None for a metric that works without.
        guidance: Config of the guidance that the images are, or will be, made with, in a config
            ``{{_base_.synthesis.guidance}}``; {} for none.
        allow_critic: Let the critic judge; the results then hold ``judge_is_critic`` = 1.
        device: Where the judge works; None for the host's choice.
        collect_device, prefix, collect_dir: See :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ValueError: If the judge is the critic or comes without ``guidance``, or its classes are not the data set's.
    """

    def __init__(self, judge: Mapping[str, Any] | Critic | Judge | None, *,
                 guidance: Mapping[str, Any] | None, allow_critic: bool, device: str | None, collect_device: str,
                 prefix: str | None, collect_dir: str | None) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        self.judge = None if judge is None else Judge.build(judge, device)
        self._role: str | None = None
        if self.judge is not None:
            if guidance is None:
                raise ValueError(f'{type(self).__name__}: `judge` goes with `guidance`, the config of what guides the '
                                 'images, for the critic must not judge them; got None. Set '
                                 '`guidance={{_base_.synthesis.guidance}}`, or {} where nothing guides.')
            self._role = check_judge_of_guidance(guidance, self.judge.weights_sha256, allow_critic=allow_critic)

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

    def role_entries(self) -> dict[str, float]:
        """What the results must say about the judge."""
        return {'judge_is_critic': 1.0} if self._role == CRITIC else {}


def generated_images(samples: Samples) -> list[Tensor]:
    """The generated images, each (3, H, W), uint8, RGB.

    Raises:
        ValueError: If a sample has none.
    """
    if any('generated_img' not in sample for sample in samples):
        raise ValueError('a sample has no `generated_img`: this metric is for generated images. Use it in the '
                         '`val_evaluator` of a generator, or tools/analysis_tools/evaluate_pool.py.')
    return [sample['generated_img']['data'].cpu() for sample in samples]


def masks_of(samples: Samples) -> list[Tensor]:
    """The masks that the images were generated for, each (H, W), int64."""
    return [sample['gt_sem_seg']['data'].squeeze(0).long().cpu() for sample in samples]


def pool_sample(id: str, image: np.ndarray, mask: np.ndarray, trusted: np.ndarray | None = None) -> dict[str, Any]:
    """A stored sample in the form that metrics take.

    Args:
        id: Its id.
        image: (H, W, 3), uint8, RGB.
        mask: (H, W), the classes that it was generated for.
        trusted: (H, W), what of the mask a filter left; None if none ran.
    """
    sample: dict[str, Any] = dict(
        sample_id=id,
        generated_img=dict(data=torch.from_numpy(np.array(image)).permute(2, 0, 1)),
        gt_sem_seg=dict(data=torch.from_numpy(mask.astype(np.int64))[None]))
    if trusted is not None:
        sample['trusted_sem_seg'] = dict(data=torch.from_numpy(trusted.astype(np.int64))[None])
    return sample
