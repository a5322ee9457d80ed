"""Reducible loss: what a learner misreads and a teacher reads, so that there is something to learn and it is right.

After RHO-LOSS (Mindermann et al., arXiv 2206.07137), which chooses training points by ``loss(learner) -
loss(teacher)``: a point that both misread is noise or wrongly labelled, one that both read is known already. Here it is
the loss that guidance descends, with its sign turned:

    loss = loss(teacher) - weight * loss(learner)
"""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmsynth.guidance.base import Critic, CriticOutput
from mmsynth.guidance.ensemble import check_agreement
from mmsynth.registry import MODELS


@MODELS.register_module()
class ReducibleLossCritic(Critic):
    """A teacher that is to read an image, against a learner that is not to read it yet.

    Predictions, and which pixels are misread, are the teacher's. Use it with the objective 'mask': that of misread
    pixels would pass over those that only the learner misreads.

    Args:
        teacher: A :class:`~mmsynth.guidance.Critic`, or its config; the one that knows more, such as one trained on
            more places, or an ensemble.
        learner: The segmentor as it is before it is trained on the images, of the same classes and kind of input.
        weight: Of the learner's loss, at least 0.

    Raises:
        ValueError: If the weight is negative, or the two do not fit each other.
    """

    def __init__(self, teacher: Critic | dict, learner: Critic | dict, weight: float = 1.0) -> None:
        if weight < 0:
            raise ValueError(f'`weight` must not be negative, got {weight}.')
        super().__init__()
        self.teacher: Critic = MODELS.build(teacher) if isinstance(teacher, dict) else teacher
        self.learner: Critic = MODELS.build(learner) if isinstance(learner, dict) else learner
        self.weight = weight
        check_agreement('teacher` and `learner', [self.teacher, self.learner])
        self.num_classes, self.ignore_index = self.teacher.num_classes, self.teacher.ignore_index
        self.input_type = self.teacher.input_type

    def check_latents(self, channels: int, factor: int) -> None:
        self.teacher.check_latents(channels, factor)
        self.learner.check_latents(channels, factor)

    @contextmanager
    def frozen_eval(self) -> Iterator[None]:
        with self.teacher.frozen_eval(), self.learner.frozen_eval():
            yield

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return self.teacher.device

    def predict_logits(self, inputs: Tensor) -> Tensor:
        """The teacher's."""
        return self.teacher.predict_logits(inputs)

    def forward(self, inputs: Tensor, masks: Tensor) -> CriticOutput:
        """As in :class:`Critic`; the loss may be negative."""
        known, new = self.teacher(inputs, masks), self.learner(inputs, masks)
        return CriticOutput(known.loss - self.weight * new.loss, known.wrong, known.valid, known.logits)
