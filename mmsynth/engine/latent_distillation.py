"""What a latent critic learns from: latents of real images, clean estimates of a generator, and a segmentor's readings.

Legend: B batch, C latent channels, h w latent cells, H W pixels, K classes.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmsynth.guidance import Critic, Guidance
from mmsynth.guidance.base import Decode
from mmsynth.models.generators import BaseGenerator
from mmsynth.models.generators.base import stack_masks
from mmsynth.sampling import Guide, SamplingStep


@dataclass(frozen=True)
class Lesson:
    """What is known of a batch of labelled images.

    Attributes:
        clean: The images' latents (B, C, h, w).
        masks: (B, H, W), integer class ids.
        estimates: Clean estimates (B, C, h, w) for the same masks, one per sampling step; none if not asked for.
    """

    clean: Tensor
    masks: Tensor
    estimates: Sequence[Tensor] = ()


class Teacher(Guidance):
    """The segmentor behind the generator's codec, and the generator as the source of clean estimates.

    As a guidance it corrects nothing: it notes the clean estimates of a run.

    Args:
        critic: The segmentor.
        generator: Gives codec and clean estimates.
    """

    def __init__(self, critic: Critic, generator: BaseGenerator) -> None:
        super().__init__(critic)
        self.generator = generator
        self._estimates: list[Tensor] = []

    @property
    def decode(self) -> Decode:
        return self.generator.latent_codec.decode

    def bind(self, decode: Decode, masks: Tensor) -> Guide:
        """A guide that notes each step's clean estimate."""

        def note(prediction: Tensor, step: SamplingStep) -> tuple[Tensor, None]:
            self._estimates.append(step.clean_estimate(prediction).float())
            return prediction, None

        return note

    @torch.no_grad()
    def prepare(self, data: dict[str, Any], *, with_estimates: bool) -> Lesson:
        """Encode a batch of the data loader, and have the generator generate its masks if estimates are asked for."""
        data = self.generator.data_preprocessor(data)
        samples = data['data_samples']
        masks = stack_masks(samples, self.generator.device)
        clean = self.generator.latent_codec.encode(data['inputs'], generator=torch.default_generator).float()
        if not with_estimates:
            return Lesson(clean, masks)
        self._estimates = []
        seeds = torch.randint(2**62, (len(samples), )).tolist()
        self.generator.sample_latents(samples, masks, seeds, guidance=self)
        return Lesson(clean, masks, tuple(self._estimates))

    @torch.no_grad()
    def predict_logits(self, latents: Tensor) -> Tensor:
        """The segmentor's logits (B, K, H, W) for clean latents (B, C, h, w), decoded in full."""
        with self.critic.frozen_eval():
            return self.critic.predict_logits((self.decode(latents) / 2 + 0.5).clamp(0, 1)).float()
