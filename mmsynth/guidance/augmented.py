"""A critic that looks several times, so that a pattern which pleases it at one position only does not count.

The views are fixed: view 0 is the image itself, the others are flipped, turned and shifted by a few pixels, and may be
noisy, each by a seed of its own that is the same for every image. So a sample does not depend on its batch. Averaging
the gradient over disturbed inputs is the smoothing of training-free guidance (TFG, arXiv 2409.15761, section 3).

Legend: B batch, K classes, H W pixels.
"""
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsynth.guidance.base import Critic
from mmsynth.guidance.ensemble import AveragingCritic
from mmsynth.registry import MODELS
from mmsynth.utils import derive_seed


@MODELS.register_module()
class AugmentedCritic(AveragingCritic):
    """Mean of one critic's predictions for several views of an image, brought back to the image's frame.

    The image is decoded once; each look costs a pass of the critic.

    Args:
        critic: A :class:`~mmsynth.guidance.Critic` of images, or its config.
        looks: Number of views.
        max_shift: Largest shift of a view in pixels, in each direction; edge pixels are repeated.
        noise_std: Standard deviation of Gaussian noise on all views but the first, in units of [0, 1] images.

    Raises:
        ValueError: If an option is out of range, or the critic takes latents.
    """

    def __init__(self, critic: Critic | dict, looks: int = 4, max_shift: int = 3, noise_std: float = 0.0) -> None:
        if looks < 1 or max_shift < 0 or noise_std < 0:
            raise ValueError('`looks` must be at least 1, `max_shift` and `noise_std` not negative, got '
                             f'{looks}, {max_shift} and {noise_std}.')
        super().__init__()
        self.critic: Critic = MODELS.build(critic) if isinstance(critic, dict) else critic
        if self.critic.input_type != 'images':
            raise ValueError(f'`critic`: AugmentedCritic turns and shifts images; {type(self.critic).__name__} takes '
                             'latents. Use a critic of images.')
        self.weights = [1 / looks] * looks
        self.max_shift = max_shift
        self.noise_std = noise_std
        self.num_classes, self.ignore_index = self.critic.num_classes, self.critic.ignore_index

    def predict_all(self, inputs: Tensor) -> list[Tensor]:
        return [self._look(inputs, view) for view in range(len(self.weights))]

    def frozen_eval(self) -> AbstractContextManager[None]:
        return self.critic.frozen_eval()

    @property
    def device(self) -> torch.device:
        """Where the critic is."""
        return self.critic.device

    def _look(self, images: Tensor, view: int) -> Tensor:
        if view == 0:
            return self.critic.predict_logits(images)
        rng = torch.Generator().manual_seed(derive_seed(0, 'view', view))
        flip, turns = (int(torch.randint(count, (), generator=rng)) for count in (2, 4))
        if images.shape[-2] != images.shape[-1]:
            turns -= turns % 2  # a quarter turn would change the size
        shift = torch.randint(-self.max_shift, self.max_shift + 1, (2, ), generator=rng).tolist()
        noise = self.noise_std * torch.randn(images.shape[1:], generator=rng).to(images)
        seen = _shift((images + noise).clamp(0, 1) if self.noise_std else images, *shift)
        seen = torch.rot90(seen.flip(-1) if flip else seen, turns, (-2, -1))
        logits = torch.rot90(self.critic.predict_logits(seen), -turns, (-2, -1))
        return _shift(logits.flip(-1) if flip else logits, -shift[0], -shift[1])


def _shift(images: Tensor, down: int, right: int) -> Tensor:
    """Move images (B, C, H, W) by whole pixels; the edge that they leave is repeated."""
    height, width = images.shape[-2:]
    margin = max(abs(down), abs(right))
    padded = F.pad(images, (margin, ) * 4, mode='replicate')
    return padded[..., margin - down:margin - down + height, margin - right:margin - right + width]
