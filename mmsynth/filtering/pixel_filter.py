"""The pixel filter: a segmentor predicts synthetic images; pixels that fit their class too badly are not trusted.

Legend: B batch, K classes, H W pixels.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmsynth.filtering.identity import label_hash, segmentor_identity
from mmsynth.filtering.pixel_rule import FilteredSample, PixelRule
from mmsynth.guidance import Critic
from mmsynth.guidance.class_losses import ClassLosses, pixel_losses
from mmsynth.registry import MODELS
from mmsynth.utils.hashes import config_hash


@MODELS.register_module()
class ClassLossFilter(nn.Module):
    """A segmentor and the rule by which its losses are judged.

    Args:
        segmentor: A :class:`~mmsynth.guidance.Critic` that predicts on images, or its config. One that guided the
            synthesis doubts little, for the images were optimised for it.
        class_losses: Its losses on real data: the file of tools/fit_class_loss.py, or what it holds.
        margin, mode, sibling_vote, min_valid, weak_classes, unseen_classes: See :class:`PixelRule`.

    Attributes:
        rule: The :class:`PixelRule`.
        identity: Hash of the rule's settings and the segmentor; results carry it as ``filter_sha256``.

    Raises:
        ValueError: If an option is out of range, or class losses and segmentor do not belong together.
        FileNotFoundError: If a file does not exist.
    """

    def __init__(self,
                 segmentor: Critic | dict,
                 class_losses: ClassLosses | str | Path,
                 *,
                 margin: float = 1.25,
                 mode: Literal['hard', 'soft'] = 'hard',
                 sibling_vote: Literal['median'] | None = None,
                 min_valid: float = 0.8,
                 weak_classes: Sequence[str] = (),
                 unseen_classes: Literal['error', 'drop', 'keep'] = 'error') -> None:
        super().__init__()
        source = 'the class losses' if isinstance(class_losses, ClassLosses) else str(class_losses)
        if not isinstance(class_losses, ClassLosses):
            class_losses = ClassLosses.read(class_losses)
        self.rule = PixelRule(class_losses, margin=margin, mode=mode, sibling_vote=sibling_vote, min_valid=min_valid,
                              weak_classes=tuple(weak_classes), unseen_classes=unseen_classes)
        self.segmentor: Critic = MODELS.build(segmentor) if isinstance(segmentor, dict) else segmentor
        if self.segmentor.input_type != 'images':
            raise ValueError(f'`segmentor` must predict on images, {type(self.segmentor).__name__} does on '
                             f'{self.segmentor.input_type}; give a critic of images.')
        self.segmentor_sha256: str = segmentor_identity(self.segmentor)
        _check_together(self.segmentor, self.segmentor_sha256, class_losses, source)
        self.identity: str = config_hash(dict(self.rule.settings, segmentor=self.segmentor_sha256))

    @property
    def needs_siblings(self) -> bool:
        """Whether all samples of a mask must be decided on together."""
        return self.rule.sibling_vote is not None

    def check_classes(self, names: Sequence[str], source: str) -> None:
        """Raise ValueError unless these are the classes of the class losses, in their order."""
        own = self.rule.class_losses.class_names
        if tuple(names) != own:
            raise ValueError(f'{source} has the classes {", ".join(names)}; the class losses are of {", ".join(own)}. '
                             'Fit them on data with the same classes (tools/fit_class_loss.py).')

    @torch.no_grad()
    def predict_logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Logits (B, K, H, W) for B images (H, W, 3), uint8, RGB, of one size."""
        pixels = torch.from_numpy(np.stack(images)).to(self.segmentor.device).permute(0, 3, 1, 2)
        return self.segmentor.predict_logits(pixels.float() / 255)

    def losses(self, logits: Tensor, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Cross entropy (B, H, W), float32, of logits and B masks (H, W), uint8; 0 where unlabelled."""
        labels = torch.from_numpy(np.stack(masks)).to(logits.device)
        return pixel_losses(logits, labels).cpu().numpy()

    def decide(self, losses: Sequence[np.ndarray], mask: np.ndarray) -> list[FilteredSample]:
        """:meth:`PixelRule.decide`, with the hashes of filter and label in the entries."""
        hashes = dict(filter_sha256=self.identity, labels_sha256=label_hash(mask))
        return [FilteredSample(found.label, found.weight, hashes | found.entry)
                for found in self.rule.decide(losses, mask)]

    def forward(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[FilteredSample]:
        """Filter B samples of one size, each by itself.

        Raises:
            ValueError: If the rule needs a sample's siblings.
        """
        if self.needs_siblings:
            raise ValueError('a filter with `sibling_vote` decides on all samples of a mask together; filter the '
                             'finished pool.')
        losses = self.losses(self.predict_logits(images), masks)
        return [self.decide([loss], mask)[0] for loss, mask in zip(losses, masks)]


def _check_together(critic: Critic, identity: str, class_losses: ClassLosses, source: str) -> None:
    count = len(class_losses.class_names)
    if critic.num_classes != count:
        raise ValueError(f'{source}: they are of {count} classes, the segmentor has {critic.num_classes}; fit them '
                         'with the segmentor that filters (tools/fit_class_loss.py).')
    fitted = class_losses.provenance.get('segmentor_sha256')
    if fitted is not None and fitted != identity:
        raise ValueError(f'{source}: they were measured with another segmentor ({fitted}) than the one that filters '
                         f'({identity}), so its losses cannot be held against them. Fit them again with this one '
                         '(tools/fit_class_loss.py).')
