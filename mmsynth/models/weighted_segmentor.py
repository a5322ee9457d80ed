"""Segmentors that weight the loss of every pixel: ``model=dict(type='mmsynth.WeightedEncoderDecoder')``.

A decode head of mmseg asks its ``sampler`` for weights and hands them to its losses. Here each head gets a sampler that
answers with the weights of the batch, so the heads, the losses and the checkpoints stay those of mmseg.

Legend: B batch, H W pixels, K channels of the logits.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.structures import BasePixelSampler, SegDataSample
from torch import Tensor, nn

from mmsynth.registry import MODELS
from mmsynth.utils.labels import check_ignore_index


class PixelWeights(BasePixelSampler):
    """Give a decode head the weights of the current batch, times those of the sampler that it had.

    Args:
        own: The head's own sampler, such as OHEM, or None.
    """

    def __init__(self, own: BasePixelSampler | None) -> None:
        super().__init__()
        self.own = own
        self.weights: Tensor | None = None
        self.asked = False

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor | None:
        """Weights (B, H, W) for logits (B, K, H, W) and labels (B, 1, H, W); None where nothing is weighted."""
        own = None if self.own is None else self.own.sample(seg_logit, seg_label)
        self.asked = True
        if self.weights is None or own is None:
            return own if self.weights is None else self.weights
        return own * self.weights


@MODELS.register_module()
class WeightedEncoderDecoder(EncoderDecoder):
    """mmseg's ``EncoderDecoder`` with weights per pixel.

    The loss of a pixel is multiplied by its weight, and the mean is taken over as many pixels as without weights: what
    is trusted less moves the network less. A pixel of weight 0 contributes nothing; an ignored one neither, whatever
    its weight. Samples without ``gt_pixel_weight`` count in full; weights of 1 change nothing.

    Raises:
        ValueError: If a head is none of mmseg's ``BaseDecodeHead``, or one of its losses cannot weight pixels.
    """

    def _init_decode_head(self, decode_head: Any) -> None:
        super()._init_decode_head(decode_head)
        _install(self.decode_head)

    def _init_auxiliary_head(self, auxiliary_head: Any) -> None:
        super()._init_auxiliary_head(auxiliary_head)
        check_ignore_index(self)  # the host builds these heads last
        if self.with_auxiliary_head:
            _install(self.auxiliary_head)

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """As the host's, with the weights of the samples.

        Raises:
            ValueError: If a head leaves the weights out, or weights are larger than their label.
        """
        weights = stack_weights(data_samples)
        if weights is None:
            return super().loss(inputs, data_samples)
        heads = [head for name in ('decode_head', 'auxiliary_head') for head in _heads(getattr(self, name, None))]
        with _weighted(weights.to(inputs.device), heads):
            return super().loss(inputs, data_samples)


@MODELS.register_module()
class WeightedCascadeEncoderDecoder(WeightedEncoderDecoder, CascadeEncoderDecoder):
    """mmseg's ``CascadeEncoderDecoder`` with weights per pixel, see :class:`WeightedEncoderDecoder`."""


def stack_weights(data_samples: Sequence[SegDataSample]) -> Tensor | None:
    """The weights of a batch (B, H, W), float32, of the labels' size: 1 for samples without; None if all are without.

    What the data preprocessor added to a label at the right and below gets the weight 0.

    Raises:
        ValueError: If weights are larger than their label.
    """
    if not any('gt_pixel_weight' in sample for sample in data_samples):
        return None
    return torch.stack([_weight_of(sample) for sample in data_samples])


def _weight_of(sample: SegDataSample) -> Tensor:
    label = sample.gt_sem_seg.data[0]
    if 'gt_pixel_weight' not in sample:
        return torch.ones(label.shape, device=label.device)
    weight = sample.gt_pixel_weight.data[0].float()
    missing = [whole - part for whole, part in zip(label.shape, weight.shape)]
    if min(missing) < 0:
        raise ValueError(f'`gt_pixel_weight` {tuple(weight.shape)} must not be larger than its label '
                         f'{tuple(label.shape)}; pack both with PackWeightedSegInputs.')
    return F.pad(weight, (0, missing[1], 0, missing[0]))


@contextmanager
def _weighted(weights: Tensor, heads: Sequence[nn.Module]) -> Iterator[None]:
    """Give every head's samplers the weights of a batch, and see that each head asks for them."""
    samplers = [[part.sampler for part in _parts(head)] for head in heads]
    for sampler in (sampler for group in samplers for sampler in group):
        sampler.weights, sampler.asked = weights, False
    try:
        yield
        unweighted = [type(head).__name__ for head, group in zip(heads, samplers) if not any(s.asked for s in group)]
    finally:
        for sampler in (sampler for group in samplers for sampler in group):
            sampler.weights = None
    if unweighted:
        raise ValueError(f'{", ".join(unweighted)} has a loss of its own that leaves weights per pixel out; use a head '
                         "with mmseg's `BaseDecodeHead.loss_by_feat`, or EncoderDecoder and hard filtered labels.")


def _heads(heads: nn.Module | None) -> list[nn.Module]:
    """The heads of one attribute of a segmentor: none, one, or a list of them."""
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _parts(head: nn.Module) -> list[BaseDecodeHead]:
    """The head and the heads within it (K-Net has such) that can be given weights."""
    return [module for module in head.modules() if isinstance(module, BaseDecodeHead)]


def _install(heads: nn.Module) -> None:
    for head in _heads(heads):
        if not _parts(head):
            raise ValueError(f"{type(head).__name__} is not one of mmseg's `BaseDecodeHead`, whose losses take weights "
                             'per pixel; use another head, or EncoderDecoder and hard filtered labels.')
        for part in _parts(head):
            _check_losses(part)
            part.sampler = PixelWeights(part.sampler)


def _check_losses(head: BaseDecodeHead) -> None:
    losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
    for loss in losses:
        # mmseg's other losses take no `weight`, or one per sample; a user's own may say that it takes one per pixel
        if not (isinstance(loss, CrossEntropyLoss) and not loss.use_mask or getattr(loss, 'weights_pixels', False)):
            raise ValueError(f'{type(loss).__name__} of {type(head).__name__} cannot weight pixels; use '
                             'CrossEntropyLoss in `loss_decode`, give a loss of your own that takes a `weight` '
                             '(B, H, W) the attribute `weights_pixels = True`, or use EncoderDecoder and hard filtered '
                             'labels.')
