"""TransformedMasks: masks flipped, turned and zoomed.

Legend: H W pixels of the mask.
"""
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args

import cv2
import numpy as np
from torch.utils.data import Dataset

from mmsynth.datasets.mask_sources.base import Mask, VariantSource, sample_id
from mmsynth.registry import DATASETS
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.utils.seeds import derive_seed

Fill = Literal['reflect', 'ignore']
_BORDERS = dict(reflect=cv2.BORDER_REFLECT_101, ignore=cv2.BORDER_CONSTANT)


@dataclass(frozen=True)
class TransformStep:
    """Flip, then quarter turns, then a turn by any angle with a zoom, in one nearest-neighbour sampling.

    Attributes:
        flip: Mirror left and right.
        quarter_turns: Counterclockwise, 0 … 3; an odd number exchanges height and width.
        angle: Counterclockwise, in degrees.
        scale: Zoom; over 1 shows a part, under 1 shows the mask smaller.
        shift: Where the part is, or the smaller mask: (down, right), each in [-1, 1] from one border to the other.
        fill: What lies outside the mask: its mirror image, or unlabelled pixels.
    """

    flip: bool
    quarter_turns: int
    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    fill: Fill = 'reflect'

    @property
    def exact(self) -> bool:
        """Whether every pixel stays one."""
        return self.angle == 0 and self.scale == 1

    def __call__(self, mask: Mask) -> tuple[Mask, dict[str, Any]]:
        turned = np.ascontiguousarray(np.rot90(mask[:, ::-1] if self.flip else mask, self.quarter_turns))
        done = asdict(self) | dict(shift=list(self.shift))
        if self.exact:
            done = dict(flip=self.flip, quarter_turns=self.quarter_turns)
        return turned if self.exact else self._warp(turned), dict(source='transform') | done

    def _warp(self, mask: Mask) -> Mask:
        """A new pixel at x takes the value at ``centre + reach * shift + R(angle) / scale * (x - centre)``."""
        size = np.array(mask.shape[::-1])  # (W, H): the maps of cv2 take (x, y)
        centre = (size - 1) / 2
        reach = np.abs(1 - 1 / self.scale) * size / 2
        cosine, sine = np.cos(np.deg2rad(self.angle)) / self.scale, np.sin(np.deg2rad(self.angle)) / self.scale
        linear = np.array([[cosine, -sine], [sine, cosine]])
        offset = centre + reach * self.shift[::-1] - linear @ centre
        warped: Any = cv2.warpAffine(
            mask, np.column_stack([linear, offset]), tuple(size.tolist()),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderMode=_BORDERS[self.fill], borderValue=IGNORE_INDEX)
        return warped

    @property
    def name(self) -> str:
        """Readable, such as 'hflip-rot90' or 'turn-12.5-zoom1.3'; 'vflip' is a flip with two quarter turns."""
        if self.flip and self.quarter_turns == 2:
            parts = ['vflip']
        else:
            parts = ['hflip'] * self.flip + [f'rot{90 * self.quarter_turns}'] * (self.quarter_turns > 0)
        parts += [f'turn{self.angle:g}'] * (self.angle != 0) + [f'zoom{self.scale:g}'] * (self.scale != 1)
        return '-'.join(parts)


@DATASETS.register_module()
class TransformedMasks(VariantSource):
    """The masks of a data set, flipped, turned and zoomed.

    Flips and quarter turns move pixels and change none; each variant of a mask has another of them. With ``max_angle``
    or ``scale_range``, each variant is also turned and zoomed by values of its own. Ids are those of the
    masks and what was done, such as 'masks/a+hflip' or 'masks/a+2-rot90-zoom1.3' (2: the variant's number).

    Args:
        dataset: The data set with the masks, or its config.
        num_variants: Variants of each mask.
        flips: Mirror left and right, or upside down.
        quarter_turns: Turn by multiples of 90 degrees. Masks that are not square change their shape.
        max_angle: Turn by up to so many degrees either way, in [0, 180].
        scale_range: Zoom by a factor between these two, uniform in its logarithm: over 1 a part of the mask, under 1
            the mask with surroundings. The size stays.
        fill: What comes in from outside: 'reflect', the mask's mirror image, or 'ignore', unlabelled pixels (255).
        keep_original: Give the masks as they are, too, before all variants.
        seed: Another seed, other variants.

    Raises:
        ValueError: If an option is out of range or nothing would change, or there are not so many different variants.
    """

    def __init__(self,
                 dataset: Dataset | Mapping[str, Any],
                 num_variants: int = 1,
                 flips: bool = True,
                 quarter_turns: bool = True,
                 max_angle: float = 0.0,
                 scale_range: tuple[float, float] = (1.0, 1.0),
                 fill: Fill = 'reflect',
                 keep_original: bool = False,
                 seed: int = 0) -> None:
        _check_options(max_angle, scale_range, fill)
        self.max_angle = max_angle
        self.scale_range = tuple(scale_range)
        self.fill = fill
        self._moves = _moves(flips, quarter_turns)
        self._exact = max_angle == 0 and self.scale_range == (1, 1)
        if self._exact:
            self._moves.remove((False, 0))
            if len(self._moves) < max(num_variants, 1):
                raise ValueError(f'`num_variants` is {num_variants}, but `flips` and `quarter_turns` give only '
                                 f'{len(self._moves)} different variants of a mask; add `max_angle` or `scale_range`, '
                                 'or allow both.')
        super().__init__(dataset, num_variants, keep_original, seed)

    def variant(self, info: dict[str, Any], number: int) -> tuple[str, TransformStep]:
        key = sample_id(info)
        order = np.random.default_rng(derive_seed(self.seed, 'moves', key)).permutation(len(self._moves))
        move = self._moves[order[number % len(order)]]
        if self._exact:
            step = TransformStep(*move)
            return step.name, step
        rng = np.random.default_rng(derive_seed(self.seed, 'transform', key, number))
        step = TransformStep(
            move[0],
            move[1],
            angle=round(rng.uniform(-1, 1) * self.max_angle, 1) + 0.0,  # no negative zero
            scale=round(float(np.exp(rng.uniform(*np.log(self.scale_range)))), 2),
            shift=tuple(rng.uniform(-1, 1, 2).round(3).tolist()),
            fill=self.fill)
        return '-'.join(filter(None, [str(number + 1), step.name])), step


def _moves(flips: bool, quarter_turns: bool) -> list[tuple[bool, int]]:
    """The flips and quarter turns to choose from, as (flip, quarter turns), first the one that changes nothing."""
    if flips and quarter_turns:
        return list(product((False, True), range(4)))
    if flips:
        return [(False, 0), (True, 0), (True, 2), (False, 2)]  # none, left and right, upside down, both
    return [(False, turns) for turns in range(4 if quarter_turns else 1)]


def _check_options(max_angle: float, scale_range: tuple[float, float], fill: str) -> None:
    if not 0 <= max_angle <= 180:
        raise ValueError(f'`max_angle` must be in [0, 180] degrees, got {max_angle}.')
    if len(scale_range) != 2 or not 0.1 <= scale_range[0] <= scale_range[1] <= 10:
        raise ValueError(f'`scale_range` must be (lowest, highest) zoom, both in [0.1, 10], got {scale_range}.')
    if fill not in get_args(Fill):
        raise ValueError(f'`fill` must be one of {", ".join(get_args(Fill))}, got {fill!r}.')
