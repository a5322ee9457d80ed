"""The pixel filter of a round: by how well the segmentor in training fits each class at that time."""
from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn

from mmsynth.filtering import ClassLosses, ClassLossFilter, ClassLossMeter, pixel_losses
from mmsynth.filtering.real_pairs import class_names, real_pairs
from mmsynth.guidance import SegmentorCritic
from mmsynth.registry import MODELS
from mmsynth.synthesis import build_dataset
from mmsynth.utils import derive_seed
from mmsynth.utils.batches import batches_of_one_shape
from mmsynth.utils.datasets import leaf_datasets

_OWN = ('segmentor', 'class_losses', 'num_images')
_RULE = tuple(name for name in signature(ClassLossFilter).parameters if name not in _OWN)


class RoundFilter:
    """Builds the filter of each round.

    Args:
        options: ``num_images``: real images, drawn anew each round, that the class losses are measured on, 32 by
            default. ``class_losses``: a file that fixes them. ``segmentor``: config of a frozen
            :class:`~mmsynth.guidance.SegmentorCritic`; by default the segmentor in training reads. The rest are
            options of :class:`~mmsynth.filtering.ClassLossFilter`; ``unseen_classes`` is 'keep' by default, because a
            few images may lack a class.
        real: Config of the real data set; not needed where ``class_losses`` is given.
        seed: The run's.
        batch_size: Images read together.
        device: Where a frozen segmentor runs.

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    def __init__(self, options: Mapping[str, Any], real: Mapping[str, Any] | None, *, seed: int, batch_size: int = 4,
                 device: torch.device | str = 'cpu') -> None:
        wrong = check_filter(options)
        if wrong:
            raise ValueError(f'online synthesis: {"; ".join(wrong)}.')
        if real is None and 'class_losses' not in options:
            raise ValueError('`filter` measures class losses on real images and there is no real data set; give '
                             '`filter.class_losses`.')
        self._rule = dict(unseen_classes='keep') | {key: options[key] for key in _RULE if key in options}
        self._num_images = options.get('num_images', 32)
        self._seed, self._batch_size = seed, batch_size
        frozen = options.get('segmentor')
        self._frozen: SegmentorCritic | None = None if frozen is None else MODELS.build(frozen).to(device)
        fixed = options.get('class_losses')
        self._fixed = None if fixed is None else ClassLosses.read(fixed)
        self._leaves = leaf_datasets(build_dataset(real)) if self._fixed is None else []

    @property
    def live(self) -> bool:
        """Whether the segmentor in training reads."""
        return self._frozen is None

    def build(self, round: int, segmentor: nn.Module | None) -> ClassLossFilter:
        """The filter of a round, by the segmentor as it is now.

        Raises:
            ValueError: If segmentor and data do not fit each other.
        """
        critic = self._frozen or SegmentorCritic(segmentor=segmentor)
        losses = self._measure(round, critic) if self._fixed is None else self._fixed
        if self._frozen is None:  # fixed losses are a measure to hold, whichever segmentor they came from
            losses = ClassLosses(losses.class_names, losses.mean_loss, losses.pixels)
        return ClassLossFilter(critic, losses, **self._rule)

    @torch.no_grad()
    def _measure(self, round: int, critic: SegmentorCritic) -> ClassLosses:
        """Class losses of a critic on a few real images."""
        names = class_names(self._leaves, critic.num_classes, '`filter`, the real data set')
        total = sum(map(len, self._leaves))
        rng = np.random.default_rng(derive_seed(self._seed, 'class losses', round))
        places = rng.permutation(total)[:self._num_images].tolist()
        device = next(critic.segmentor.parameters()).device
        meter = ClassLossMeter(len(names))
        for batch in batches_of_one_shape(real_pairs(self._leaves, places), lambda pair: pair[0].shape,
                                          self._batch_size):
            images, labels = (torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*batch))
            meter.update(pixel_losses(critic.predict_logits(images.permute(0, 3, 1, 2).float() / 255), labels), labels)
        return meter.compute(names)


def check_filter(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a :class:`RoundFilter`."""
    wrong = []
    unknown = sorted(options.keys() - {*_OWN, *_RULE})
    if unknown:
        wrong.append(f'`filter` does not know {", ".join(unknown)}; it takes {", ".join((*_OWN, *_RULE))}')
    if options.get('sibling_vote') is not None:
        wrong.append('`filter.sibling_vote` needs several images of one mask at once, and a round paints one of each; '
                     'leave it out')
    if 'class_losses' in options and 'num_images' in options:
        wrong.append('`filter.num_images` has no effect beside `filter.class_losses`; leave one of them out')
    if options.get('num_images', 1) < 1:
        wrong.append(f'`filter.num_images` must be at least 1, got {options["num_images"]}')
    return wrong
