"""UncertainMasks: the masks whose real images a segmentor is least sure of.

Legend: B batch, K classes, H W pixels, N masks, n draws.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from mmengine.device import get_device
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mmsynth.datasets.mask_sources.base import Mask, MaskSource, class_ids, sample_id, with_step
from mmsynth.registry import DATASETS, MODELS
from mmsynth.utils.hashes import file_hash
from mmsynth.utils.images import decode_bgr
from mmsynth.utils.labels import read_bytes
from mmsynth.utils.progress import progress_bar
from mmsynth.utils.seeds import derive_seed

if TYPE_CHECKING:
    from mmsynth.guidance import Critic

Rule = Literal['top', 'proportional']


def mask_uncertainty(critic: 'Critic', images: Tensor, masks: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """How unsure a critic is of images: ``mean over pixels of -sum_k p_k log p_k / log K``.

    Args:
        critic: One that reads images; a segmentor in training too, which is left as found.
        images: (B, 3, H, W), float, [0, 1], RGB.
        masks: (B, H, W), integer class ids; pixels that the critic ignores and unlabelled ones (255) do not count.
        classes: Count only pixels whose mask is one of these ids; None for all.

    Returns:
        (B,), float32, in [0, 1]; 0 where no pixel counts.

    Raises:
        ValueError: If the critic reads latents.
    """
    if critic.input_type != 'images':
        raise ValueError(f'{type(critic).__name__} reads latents; uncertainty is of images: use a SegmentorCritic.')
    with torch.no_grad(), critic.frozen_eval():
        logits = critic.predict_logits(images).float()
    log_p = logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1) / math.log(max(logits.shape[1], 2))
    counts = critic.counts(masks)
    if classes is not None:
        counts &= torch.isin(masks, torch.tensor(list(classes), dtype=masks.dtype, device=masks.device))
    return (entropy * counts).sum((1, 2)) / counts.sum((1, 2)).clamp_min(1)


@dataclass(frozen=True)
class ChooseStep:
    """Leave a mask as it is; records why it was chosen.

    Attributes:
        score: Its uncertainty, in [0, 1].
        rank: Among all masks by uncertainty, from 0.
        draw: How often it was drawn before.
        critic: Hash of the segmentor's weights; None for weights without a file.
    """

    score: float
    rank: int
    draw: int
    critic: str | None

    def __call__(self, mask: Mask) -> tuple[Mask, dict[str, Any]]:
        return mask, dict(source='uncertain', score=self.score, rank=self.rank, draw=self.draw,
                          critic_weights_sha256=self.critic)


@DATASETS.register_module()
class UncertainMasks(MaskSource):
    """The masks of a data set by a segmentor's uncertainty on their real images, the least sure first.

    The scores are computed once, when the data set is built; every record needs its image (``target`` in a manifest),
    and the mask as it is stored, so that it stands inside of sources that change masks. The score is that of the whole
    image, also where the pipeline crops the mask. Ids stay; the second draw of a mask is called 'NAME+draw2'.

    Args:
        dataset: The data set with masks and their images, or its config.
        critic: A ``mmsynth.SegmentorCritic``, or its config.
        rule: 'top' takes the masks with the highest scores; 'proportional' draws masks as often as their share in the
            sum of the scores says, rounded up or down by chance.
        share: How many masks to take or draw, as a share of all; in (0, 1] for 'top', over 0 for 'proportional'.
        classes: Names of the classes whose pixels count; None for all. Masks without any of them score 0.
        seed: Of the draws.
        device: Where the segmentor runs; None for a GPU where there is one.

    Raises:
        ValueError: If an option is out of range, a class is unknown, the segmentor has other classes or reads latents,
            a record has no image or one of another size, masks are changed inside, or the scores are all 0
            or not finite.
    """

    def __init__(self,
                 dataset: Dataset | Mapping[str, Any],
                 critic: 'Critic | dict',
                 rule: Rule = 'top',
                 share: float = 0.5,
                 classes: Sequence[str] | None = None,
                 seed: int = 0,
                 device: str | None = None) -> None:
        _check_options(rule, share)
        super().__init__(dataset)
        known = self.metainfo.get('classes')
        counted = None if classes is None else class_ids(classes, known, 'classes')
        built = MODELS.build(critic) if isinstance(critic, Mapping) else critic
        built.check_num_classes(None if known is None else len(known))
        weights = critic.get('checkpoint') if isinstance(critic, Mapping) else None
        self._critic_hash = None if weights is None else file_hash(weights)
        self.scores = self._score(built.to(device or get_device()), counted)
        if not self.scores.any():
            raise ValueError('every mask has the uncertainty 0: the segmentor is certain of all images, or no mask '
                             f'holds a pixel of `classes` {classes}; name other classes.')
        ids = [sample_id(self.reader.info(index)) for index in range(len(self.reader))]
        self._ranking = sorted(range(len(ids)), key=lambda index: (-self.scores[index], ids[index]))
        ranked = self.scores[self._ranking]
        self._chosen = choose_top(ranked, share) if rule == 'top' else choose_proportional(ranked, share, seed)

    def __len__(self) -> int:
        return len(self._chosen)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        index = range(len(self))[idx]
        rank, draw = self._chosen[index]
        place = self._ranking[rank]
        info = self.reader.info(place) | dict(sample_idx=index)
        name = sample_id(info) if draw == 0 else f'{sample_id(info)}+draw{draw + 1}'
        return with_step(info, name, ChooseStep(float(self.scores[place]), rank, draw, self._critic_hash))

    def _score(self, critic: 'Critic', classes: list[int] | None) -> NDArray[np.float64]:
        """The uncertainty of every mask (N,). Images are read one by one, so that none depends on its neighbours."""
        device = next(getattr(critic, 'segmentor', critic).parameters()).device
        scores = np.empty(len(self.reader))
        for index in progress_bar(range(len(scores)), unit='img', title='uncertainty'):
            image, mask = self._pair(index)
            scores[index] = mask_uncertainty(critic, image[None].to(device), mask[None].to(device), classes).item()
        broken = np.flatnonzero(~np.isfinite(scores))
        if len(broken):
            raise ValueError(f'what the segmentor reads is not finite for {len(broken)} images, the first of them that '
                             f'of {sample_id(self.reader.info(int(broken[0])))}; check its weights.')
        return scores.round(5)

    def _pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (3, H, W), float, [0, 1], RGB, and mask (H, W), int64, both as stored."""
        info = self.reader.info(index)
        name = sample_id(info)
        mask = self.reader.stored_mask(info)
        recipe = info.get('mask_recipe')
        if recipe is not None and recipe.apply(mask)[0] is not mask:
            raise ValueError(f'{name} is changed, so its image no longer fits; let UncertainMasks choose first: '
                             'TransformedMasks(UncertainMasks(…)).')
        path = info.get('img_path')
        if path is None:
            raise ValueError(f"{name} has no image to be unsure of; give it 'target' in the manifest, and leave "
                             '`masks_only` out.')
        image = _read_image(path, getattr(self.reader.dataset, 'backend_args', None))
        if image.shape[:2] != mask.shape:
            raise ValueError(f'image {path} is {image.shape[0]} x {image.shape[1]} (height x width), the mask of '
                             f'{name} is {mask.shape[0]} x {mask.shape[1]}; they must cover the same pixels.')
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255, torch.from_numpy(mask.astype(np.int64))


def choose_top(ranked: NDArray[np.float64], share: float) -> list[tuple[int, int]]:
    """The first share of the ranks, at least one, each drawn once: (rank, 0)."""
    return [(rank, 0) for rank in range(max(1, math.ceil(share * len(ranked) - 1e-9)))]


def choose_proportional(ranked: NDArray[np.float64], share: float, seed: int) -> list[tuple[int, int]]:
    """Systematic sampling: rank r is drawn ``n score_r / sum(score)`` times, rounded up or down by one seeded offset.

    Args:
        ranked: Scores (N,), at least 0 and not all 0.
        share: n / N.
        seed: Of the offset.

    Returns:
        (rank, how often it was drawn before), by rank.
    """
    count = max(1, round(share * len(ranked)))
    offset = np.random.default_rng(derive_seed(seed, 'uncertain')).random()
    ends = np.cumsum(ranked)
    ends /= ends[-1]  # the last is 1 exactly, and so are those of trailing zeros, which are never drawn
    ranks = np.searchsorted(ends, (np.arange(count) + offset) / count, side='right')
    return [(int(rank), draw) for rank, times in zip(*np.unique(ranks, return_counts=True)) for draw in range(times)]


def _read_image(path: str, backend_args: dict | None) -> NDArray[np.uint8]:
    """(H, W, 3), uint8, RGB."""
    image = decode_bgr(read_bytes(path, 'image', backend_args), path)
    if image is None:
        raise ValueError(f'image {path} cannot be read as an image.')
    return np.ascontiguousarray(image[..., ::-1])


def _check_options(rule: str, share: float) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f'`rule` must be one of {", ".join(get_args(Rule))}, got {rule!r}.')
    if share <= 0 or (rule == 'top' and share > 1):
        raise ValueError(f'`share` must be in (0, 1] with the rule top and over 0 otherwise, got {share}.')
