"""What guidance is made of: a critic that judges, a decoder that it looks through, and the guidance that uses both.

Legend: B batch, C latent channels, h w latent cells, H W pixels, K classes.
"""
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsynth.registry import MODELS
from mmsynth.sampling import Guide
from mmsynth.utils.labels import IGNORE_INDEX

Decode = Callable[[Tensor], Tensor]
Record = dict[str, float]
Sample = Callable[[Sequence[int]], tuple[Tensor, list[list[Record]]]]


class Guidance(nn.Module):
    """Base of everything that steers a sampler by a critic; holds settings, no progress.

    Args:
        critic: A :class:`Critic`, or its config.
        decoder: What the critic looks through instead of the generator's own full decode; None for that decode.

    Attributes:
        recurrence: Times that each guided step is taken.

    Raises:
        ValueError: If a decoder is given to a critic of latents.
    """

    recurrence: int = 1

    def __init__(self, critic: 'Critic | dict', decoder: 'GuidanceDecoder | dict | None' = None) -> None:
        super().__init__()
        self.critic: Critic = MODELS.build(critic) if isinstance(critic, dict) else critic
        self.decoder: GuidanceDecoder | None = MODELS.build(decoder) if isinstance(decoder, dict) else decoder
        if self.decoder is not None and self.critic.input_type == 'latents':
            raise ValueError(f'`decoder` has no effect: the critic {type(self.critic).__name__} takes latents, nothing '
                             'is decoded for it. Remove the decoder, or use a critic of images.')

    def check_run(self, num_steps: int) -> None:
        """Raise ValueError if the guidance does not fit a run of ``num_steps`` sampling steps; by default any fits."""

    def check_fit(self, num_classes: int, *, channels: int, factor: int) -> None:
        """Raise ValueError if critic or decoder do not fit a generator.

        Args:
            num_classes: The generator's class count.
            channels: Latent channels of its codec.
            factor: Pixels per latent cell and side of its codec.
        """
        self.critic.check_num_classes(num_classes)
        self.critic.check_latents(channels, factor)
        if self.decoder is not None:
            self.decoder.check_latents(channels, factor)

    def bind(self, decode: Decode, masks: Tensor) -> Guide | None:
        """The guide of one batch, for :func:`mmsynth.sampling.sample`; None where no step is corrected.

        Args:
            decode: Latents (B, C, h, w) → images (B, 3, H, W), nominally [-1, 1], differentiable.
            masks: (B, H, W), integer class ids.
        """
        return None

    def run(self, sample: Sample, seeds: Sequence[int], decode: Decode, masks: Tensor, *,
            num_steps: int) -> tuple[Tensor, list[list[Record]]]:
        """Sample one batch from start to end: by default each sample is generated once, under its own seed.

        Args:
            sample: Generates the batch: one seed per sample → clean latents (B, C, h, w), and a trace per sample. It is
                guided by :meth:`bind`.
            seeds: The samples' own.
            decode: As in :meth:`bind`.
            masks: (B, H, W), integer class ids.
            num_steps: Sampling steps of the run.

        Returns:
            The latents that are kept, and per sample the trace: one dict of numbers per entry.
        """
        return sample(seeds)

    def judge(self, clean_latents: Tensor, decode: Decode, masks: Tensor) -> 'CriticOutput':
        """Run the critic on clean latents (B, C, h, w), decoded as the settings say; differentiable.

        Args:
            clean_latents: Clean latents, or clean estimates.
            decode: The codec's, as in :meth:`bind`. Its images are clamped to [-1, 1].
            masks: (B, H, W), integer class ids.
        """
        if self.critic.input_type == 'latents':
            return self.critic(clean_latents.float(), masks)
        decode = decode if self.decoder is None else self.decoder.around(decode)
        return self.critic((decode(clean_latents) / 2 + 0.5).clamp(0, 1), masks)


class Critic(nn.Module):
    """Interface of a critic: a frozen segmentor that measures how well an image shows its mask.

    Subclasses give :meth:`predict_logits`, and set ``num_classes`` and ``ignore_index``.

    Attributes:
        input_type: 'images': (B, 3, H, W), float, [0, 1], RGB; or 'latents': clean latents (B, C, h, w).
        num_classes: Class count K.
        ignore_index: Mask value of pixels that do not count; those of 255 (unlabelled) never do.
    """

    input_type: Literal['images', 'latents'] = 'images'
    num_classes: int
    ignore_index: int

    def predict_logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, K, H, W), at the size of the mask, for inputs of the ``input_type``; differentiable."""
        raise TypeError(f'{type(self).__name__} does not predict')

    def forward(self, inputs: Tensor, masks: Tensor) -> 'CriticOutput':
        """Judge inputs against their masks.

        Args:
            inputs: Of the kind that ``input_type`` says.
            masks: (B, H, W), integer class ids. Pixels of the ``ignore_index`` do not count, nor do unlabelled ones
                (255).
        """
        logits = self.predict_logits(inputs).float()
        valid = self.counts(masks)
        return CriticOutput(self.pixel_loss(logits, masks), valid & (logits.argmax(1) != masks), valid, logits)

    @property
    def device(self) -> torch.device:
        """Where its inputs must be; the CPU for one without tensors."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device('cpu'))

    def counts(self, masks: Tensor) -> Tensor:
        """Where masks (B, H, W) are judged, bool: neither ignored by the critic nor unlabelled."""
        return (masks != self.ignore_index) & (masks != IGNORE_INDEX)

    def pixel_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Cross entropy (B, H, W) of logits (B, K, H, W); 0 where masks are not judged."""
        targets = masks.long().masked_fill(~self.counts(masks), self.ignore_index)
        return F.cross_entropy(logits, targets, ignore_index=self.ignore_index, reduction='none')

    def frozen_eval(self) -> AbstractContextManager[None]:
        """Open a context to predict and differentiate in, for critics whose model has to be made ready and put back."""
        return nullcontext()

    def check_num_classes(self, num_classes: int | None) -> None:
        """Raise ValueError if the critic has another class count than ``num_classes`` (None: anything goes)."""
        if num_classes is not None and num_classes != self.num_classes:
            raise ValueError(f'critic: the segmentor has {self.num_classes} classes, the data set has {num_classes}. '
                             'Use a segmentor trained on the same classes.')

    def check_latents(self, channels: int, factor: int) -> None:
        """Raise ValueError if the critic cannot take latents of so many channels and pixels per cell.

        A critic of images takes any.
        """

    def train(self, mode: bool = True) -> 'Critic':
        """Stay in eval mode: the critic is frozen."""
        return super().train(False)


class GuidanceDecoder(nn.Module):
    """Interface of what a critic looks through: a cheaper way from latents to images than the codec's own decode."""

    def around(self, decode: Decode) -> Decode:
        """The decode that guidance uses, given the codec's.

        Args:
            decode: Latents (B, C, h, w) → images (B, 3, H, W), nominally [-1, 1], differentiable.

        Returns:
            A function of the same kind; its images have the full size too.
        """
        raise TypeError(f'{type(self).__name__} does not decode')

    def check_latents(self, channels: int, factor: int) -> None:
        """Raise ValueError if latents of so many channels and pixels per cell cannot be decoded; by default any can."""


@dataclass(frozen=True)
class CriticOutput:
    """What a critic finds in a batch.

    Attributes:
        loss: Cross entropy per pixel (B, H, W), float32; 0 where ignored.
        wrong: Pixels that are not ignored and are misclassified (B, H, W), bool.
        valid: Pixels that are not ignored (B, H, W), bool.
        logits: (B, K, H, W), float32; None of a critic that gives no more than its loss.
    """

    loss: Tensor
    wrong: Tensor
    valid: Tensor
    logits: Tensor | None = None

    def detach(self) -> 'CriticOutput':
        """The same without a gradient."""
        return CriticOutput(self.loss.detach(), self.wrong, self.valid,
                            None if self.logits is None else self.logits.detach())

    @property
    def entropy(self) -> Tensor:
        """Entropy of the predicted classes per pixel (B, H, W), in [0, 1]: 0 sure of one, 1 all K alike."""
        assert self.logits is not None
        log_probability = self.logits.log_softmax(1)
        return -(log_probability.exp() * log_probability).sum(1) / math.log(self.logits.shape[1])

    @property
    def wrong_share(self) -> Tensor:
        """Misclassified share of the pixels that are not ignored (B,), in [0, 1]; 0 where all are ignored."""
        return self.wrong.sum((1, 2)) / self.valid.sum((1, 2)).clamp_min(1)

    @property
    def mean_loss(self) -> Tensor:
        """Mean cross entropy over the pixels that are not ignored (B,); 0 where all are."""
        return self.loss.sum((1, 2)) / self.valid.sum((1, 2)).clamp_min(1)
