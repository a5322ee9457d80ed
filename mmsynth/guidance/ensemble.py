"""Several critics as one: an image pleases the ensemble only if it pleases on average.

A single critic can be pleased by what only it sees; critics of different architecture or training share less of that.
"""
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmsynth.guidance.base import Critic, CriticOutput
from mmsynth.registry import MODELS


class AveragingCritic(Critic):
    """Base of critics that make several predictions and average them.

    The loss of a pixel is the weighted mean of the predictions' cross entropies; it is misread where the class of
    highest weighted mean probability is not the mask's.

    Attributes:
        weights: Of the predictions, with a sum of 1.
    """

    weights: list[float]

    def predict_all(self, inputs: Tensor) -> list[Tensor]:
        """The predictions for inputs of the ``input_type``, one per weight: logits (B, K, H, W), differentiable."""
        raise TypeError(f'{type(self).__name__} does not predict')

    def predict_logits(self, inputs: Tensor) -> Tensor:
        """The log of the weighted mean probability (B, K, H, W)."""
        return mean_log_probability(self.predict_all(inputs), self.weights)

    def forward(self, inputs: Tensor, masks: Tensor) -> CriticOutput:
        """As in :class:`Critic`."""
        predictions = [logits.float() for logits in self.predict_all(inputs)]
        loss: Any = sum(weight * self.pixel_loss(logits, masks) for weight, logits in zip(self.weights, predictions))
        valid, logits = self.counts(masks), mean_log_probability(predictions, self.weights)
        return CriticOutput(loss, valid & (logits.argmax(1) != masks), valid, logits)


@MODELS.register_module()
class CriticEnsemble(AveragingCritic):
    """Weighted mean of several critics.

    Args:
        critics: :class:`~mmsynth.guidance.Critic` s, or their configs, of the same classes, ignore index and kind of
            input.
        weights: One positive weight per critic, brought to a sum of 1; all equal by default.

    Raises:
        ValueError: If there is no critic, the weights do not fit, or the critics do not fit each other.
    """

    def __init__(self, critics: Sequence[Critic | dict], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(critics) if weights is None else list(weights)
        if not critics or len(weights) != len(critics) or not all(0 < weight < float('inf') for weight in weights):
            raise ValueError('`critics` must hold at least one critic and `weights` one positive number for each, got '
                             f'{len(critics)} critics and the weights {weights}.')
        super().__init__()
        built: list[Critic] = [MODELS.build(critic) if isinstance(critic, dict) else critic for critic in critics]
        self.critics: Any = nn.ModuleList(built)
        self.weights = [weight / sum(weights) for weight in weights]
        check_agreement('critics', built)
        self.num_classes = built[0].num_classes
        self.ignore_index = built[0].ignore_index
        self.input_type = built[0].input_type

    def check_latents(self, channels: int, factor: int) -> None:
        for critic in self.critics:
            critic.check_latents(channels, factor)

    @contextmanager
    def frozen_eval(self) -> Iterator[None]:
        with ExitStack() as stack:
            for critic in self.critics:
                stack.enter_context(critic.frozen_eval())
            yield

    @property
    def device(self) -> torch.device:
        """Where its critics are."""
        return self.critics[0].device

    def predict_all(self, inputs: Tensor) -> list[Tensor]:
        return [critic.predict_logits(inputs) for critic in self.critics]


def mean_log_probability(predictions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The log of the weighted mean probability of several logits (B, K, H, W); the weights sum to 1."""
    return torch.stack([logits.float().log_softmax(1) + math.log(weight)
                        for weight, logits in zip(weights, predictions)]).logsumexp(0)


def check_agreement(option: str, critics: Sequence[Critic]) -> None:
    """Raise ValueError if critics differ in classes, ignore index or kind of input; ``option`` names them."""
    for setting in ('num_classes', 'ignore_index', 'input_type'):
        values = [getattr(critic, setting) for critic in critics]
        if len(set(values)) > 1:
            raise ValueError(f'`{option}` must agree in `{setting}`, got {", ".join(map(str, values))} in their order. '
                             'Use critics trained on the same classes and labels, all for images or all for latents.')
