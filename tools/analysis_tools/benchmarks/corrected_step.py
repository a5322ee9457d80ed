"""A corrected step that reads the clock inside of itself: how much of it is network, decode and critic.

Forwards, the clock is read before and after each part; backwards, by hooks on the tensors between them, which the
gradient reaches when one part is done and before the next begins. What is left is the rest: norms, objective, record.
"""
from collections.abc import Callable

import torch
from benchmarks.shapes import Shape
from benchmarks.timing import now
from torch import Tensor, nn

from mmsynth.guidance import CRFM, CriticOutput
from mmsynth.sampling import SamplingStep

PARTS = ('network', 'decode', 'critic')


class CorrectedStep:
    """One pass of a network and CRFM's correction of it.

    Args:
        forward: ``forward(latents (1, C, h, w)) -> prediction``.
        shape: Gives codec and critic.
        device: Where.

    Attributes:
        records: Of every call, the seconds of each of :data:`PARTS`.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], shape: Shape, device: str) -> None:
        self.forward, self.device = forward, device
        self.codec = shape.codec().to(device)
        guidance = CRFM(shape.critic()).to(device)
        guidance.critic.register_forward_pre_hook(lambda *_: self._mark('critic'))
        guidance.critic.register_forward_hook(self._after_critic)
        masks = torch.randint(guidance.critic.num_classes, (1, shape.size, shape.size), device=device)
        self.guide = guidance.bind(self._decode, masks)
        latents = torch.randn(1, *shape.latent_shape, device=device)
        kind = 'velocity' if shape.generator == 'todsynth' else 'noise'
        self.step = SamplingStep(0, 2, latents, alpha=0.5, sigma=0.5, prediction_type=kind)
        self.records: list[dict[str, float]] = []
        self._marks: dict[str, float] = {}

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Make the step; the corrected prediction (1, C, h, w)."""
        self.records.append(dict.fromkeys(PARTS, 0.0))
        self._mark('network')
        prediction = self.forward(self.step.latents)
        self._add('network', 'network')
        return self.guide(prediction, self.step)[0]

    def _decode(self, latents: Tensor) -> Tensor:
        self._mark('decode')
        images = self.codec.decode(latents)
        self._add('decode', 'decode')
        if images.requires_grad:
            images.register_hook(self._gradient_at_images)
            latents.register_hook(lambda _: self._add('decode', 'images'))
        return images

    def _gradient_at_images(self, gradient: Tensor) -> None:
        self._add('critic', 'loss')
        self._mark('images')

    def _after_critic(self, critic: nn.Module, given: tuple[Tensor, ...], output: CriticOutput) -> None:
        self._add('critic', 'critic')
        if output.loss.requires_grad:
            output.loss.register_hook(lambda _: self._mark('loss'))

    def _mark(self, place: str) -> None:
        self._marks[place] = now(self.device)

    def _add(self, part: str, since: str) -> None:
        self.records[-1][part] += now(self.device) - self._marks[since]
