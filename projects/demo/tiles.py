"""Cutting images and masks: overlapping pieces to train on, tiles in eight orientations to synthesize for."""
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mmsynth.utils import derive_seed
from mmsynth.utils.labels import IGNORE_INDEX
from projects.demo.labelled_folder import Uint8


def piece_windows(stem: str, size: tuple[int, int], side: int) -> dict[str, tuple[slice, slice]]:
    """Name → window of the pieces that cover an image, each overlapping the next by half or more."""
    if max(size) <= side:
        return {stem: np.s_[:, :]}
    tops, lefts = ([*range(0, length - side, side // 2), max(0, length - side)] for length in size)
    return {f'{stem}_y{top}_x{left}': np.s_[top:top + side, left:left + side] for top in tops for left in lefts}


def grid(mask: Uint8, side: int) -> Iterator[tuple[int, int, Uint8]]:
    """The whole tiles (side, side) of a mask with their top and left."""
    for top in range(0, mask.shape[0] - side + 1, side):
        for left in range(0, mask.shape[1] - side + 1, side):
            yield top, left, mask[top:top + side, left:left + side]


def cut_tiles(masks: dict[str, Uint8], side: int, count: int, seed: int) -> list[tuple[str, Uint8]]:
    """Tiles of masks, each in up to 8 orientations; every tile comes once before any comes twice."""
    tiles = [(f'{stem}_y{top}_x{left}', tile) for stem, mask in sorted(masks.items())
             for top, left, tile in grid(mask, side) if _worth_synthesizing(tile)]
    if not tiles:
        raise ValueError(f'no tile for synthesis: the {len(masks)} images held back have no part of `tile_size` = '
                         f'{side} pixels with at most 20 % ignored and no class over 95 %; lower it or `downscale`')
    rng = np.random.default_rng(derive_seed(seed, 'tiles'))
    variants = np.stack([rng.permutation(8) for _ in tiles])
    chosen = []
    for turn in range(8):
        for index in rng.permutation(len(tiles))[:count - len(chosen)].tolist():
            name, tile = tiles[index]
            variant = int(variants[index, turn])
            turned = np.rot90(tile, variant % 4)
            chosen.append((f'{name}_v{variant}', np.ascontiguousarray(turned[:, ::-1] if variant > 3 else turned)))
    return chosen


def _worth_synthesizing(tile: Uint8) -> bool:
    counts = np.bincount(tile.ravel(), minlength=IGNORE_INDEX + 1)
    labelled = tile.size - counts[IGNORE_INDEX]
    return labelled >= 0.8 * tile.size and counts[:IGNORE_INDEX].max() <= 0.95 * labelled


def write_pair(folder: Path, part: str, name: str, image: Uint8, mask: Uint8 | None) -> None:
    """Write an image, and its mask where there is one, as ``FOLDER/{img_dir,ann_dir}/PART/NAME.png``."""
    for kind, pixels in (('img_dir', image), ('ann_dir', mask)):
        if pixels is not None:
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / part / f'{name}.png')
