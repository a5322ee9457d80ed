"""A critic, a decoder and a step small enough for finite differences, for the tests of guidance."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsynth.guidance import Critic, CriticOutput
from mmsynth.sampling import SamplingStep

CHANNELS, CELLS, PIXELS = 4, 4, 8


class ToyCritic(Critic):
    """A smooth reader of three classes; it sees ``kernel`` pixels, and spoils the rows named in ``broken``."""

    num_classes, ignore_index = 3, 255

    def __init__(self, kernel: int = 3, broken: tuple[int, ...] = (), seed: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 3, kernel, kernel, generator=generator), requires_grad=False)
        self.broken = broken

    def predict_logits(self, images: Tensor) -> Tensor:
        return F.conv2d(images.to(self.weight.dtype), self.weight, padding='same')

    def forward(self, images: Tensor, masks: Tensor) -> CriticOutput:
        """In the precision of the weight, so that finite differences can be taken in float64."""
        logits = self.predict_logits(images)
        loss = F.cross_entropy(logits, masks, ignore_index=255, reduction='none')
        spoil = torch.tensor([math.nan if row in self.broken else 1.0 for row in range(len(images))])
        valid = masks != 255
        return CriticOutput(loss * spoil[:, None, None], valid & (logits.argmax(1) != masks), valid, logits)


def misread_loss(output: CriticOutput) -> Tensor:
    """Mean loss over the misread pixels (B,)."""
    return torch.stack([loss[wrong].mean() for loss, wrong in zip(output.loss, output.wrong)])


class LatentReader(Critic):
    """Reads three classes from the first three channels of clean latents, 2 x 2 pixels per cell."""

    input_type, num_classes, ignore_index = 'latents', 3, 255

    def predict_logits(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=2)

    def check_latents(self, channels: int, factor: int) -> None:
        if (channels, factor) != (CHANNELS, 2):
            raise ValueError(f'LatentReader reads {CHANNELS} channels and 2 pixels per cell, got {channels}, {factor}.')


def decode(latents: Tensor) -> Tensor:
    """Every latent cell becomes 2 x 2 pixels, all well inside [-1, 1]."""
    return F.interpolate(0.1 * latents[:, :3] + 0.02 * latents[:, 3:], scale_factor=2)


def batch(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, latents and masks."""
    generator = torch.Generator().manual_seed(1)
    prediction, latents = torch.randn(2, 3, CHANNELS, CELLS, CELLS, generator=generator)
    return prediction[:rows], latents[:rows], torch.randint(3, (3, PIXELS, PIXELS), generator=generator)[:rows]


def step_at(latents: Tensor, index: int = 0, total: int = 4, prediction_type: str = 'velocity') -> SamplingStep:
    alpha = 0.3 if prediction_type == 'velocity' else math.sqrt(1 - 0.7**2)
    return SamplingStep(index, total, latents, alpha=alpha, sigma=0.7, prediction_type=prediction_type)
