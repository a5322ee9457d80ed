"""Write the folder that the demo and the host's datasets read, from drawn scenes or from a user's labelled images.

::

    OUT/img_dir/{train,val,judge}/*.png   OUT/ann_dir/{train,val,judge}/*.png   8-bit class index, 255 = ignore
    OUT/img_dir/target/*.png              unlabelled images of another domain        (the drawn set only)
    OUT/{img_dir,ann_dir}/{target_val,target_judge}/*.png   labelled ones, to validate and to judge by (dito)
    OUT/ann_dir/synthesis/*.png           masks the labelled set lacks, to synthesize for
    OUT/synthesis.jsonl                   {"source": "ann_dir/synthesis/NAME.png"} per line
    OUT/meta.json                         name, classes, palette, seed, settings, counts

``judge`` holds what an independent judge trains on: more than the labelled part, so that it may judge its pictures.
The folder appears complete or not at all; a second call with the same settings and sources reuses it (``published``).
"""
import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from mmsynth.utils import derive_seed, progress_bar
from projects.demo.labelled_folder import Source, Uint8, read_folder, read_pair, refuse
from projects.demo.landcover import CLASSES, PALETTE, SOURCE, TARGET, draw_mask, draw_scene
from projects.demo.published import publish
from projects.demo.tiles import cut_tiles, grid, piece_windows, write_pair

_FORMAT = 4  # raise it when the same settings give other files


def write_landcover(out: str | Path, *, num_labelled: int = 12, num_val: int = 40, num_judge: int = 120,
                    num_target: int = 40, num_synthesis: int = 96, size: int = 96, tile_size: int = 48,
                    seed: int = 0) -> dict[str, Any]:
    """Write a drawn land-cover set; every part has scenes of its own.

    The parts ``target*`` show another domain: land of the same kinds with another look.

    Args:
        out: Folder to write. An earlier one of ours is reused or replaced; any other is refused.
        num_labelled: Scenes in ``train``.
        num_val: Scenes in ``val`` and in ``target_val``.
        num_judge: Scenes in ``judge`` and in ``target_judge``.
        num_target: Scenes in ``target``, which get no masks.
        num_synthesis: Masks for synthesis: tiles, with at least two classes, of newly drawn layouts.
        size: Side of a scene in pixels.
        tile_size: Side of a mask for synthesis in pixels, at most ``size``.
        seed: Names the whole set.

    Returns:
        What ``meta.json`` holds.

    Raises:
        ValueError: A number out of range, or ``out`` exists and is not ours.
    """
    numbers = dict(num_labelled=num_labelled, num_val=num_val, num_judge=num_judge, num_target=num_target,
                   num_synthesis=num_synthesis)
    wrong = [f'`{name}` must be at least 1, got {value}' for name, value in numbers.items() if value < 1]
    if not 2 <= tile_size <= size:
        wrong.append(f'`tile_size` must be between 2 and `size` = {size}, got {tile_size}')
    refuse('cannot draw a land-cover set', wrong)

    def fill(folder: Path) -> None:
        counts = dict(train=num_labelled, val=num_val, judge=num_judge, target=num_target, target_val=num_val,
                      target_judge=num_judge)
        scenes = [(part, index) for part, count in counts.items() for index in range(count)]
        for part, index in progress_bar(scenes, unit='image', title='drawing land cover'):
            look = TARGET if part.startswith('target') else SOURCE
            image, mask = draw_scene(derive_seed(seed, part, index), size, look)
            write_pair(folder, part, f'{index:04d}', image, None if part == 'target' else mask)
        _write_synthesis(folder, _drawn_tiles(num_synthesis, size, tile_size, seed))

    settings = dict(format=_FORMAT, kind='landcover', **numbers, size=size, tile_size=tile_size, seed=seed)
    return publish(Path(out), dict(name='landcover', classes=CLASSES, palette=PALETTE, seed=seed), settings, fill)


def split_folder(data_dir: str | Path, out: str | Path, *, val_pattern: str | None = None,
                 labelled_fraction: float = 0.5, downscale: int = 4, tile_size: int = 48, piece_size: int = 96,
                 num_synthesis: int = 160, seed: int = 0) -> dict[str, Any]:
    """Split a folder of labelled images into labelled, validation, judge and synthesis parts.

    ``train`` is the labelled part of the training images; ``judge`` all of them; the masks for synthesis are tiles of
    the others' masks, turned and flipped.

    Args:
        data_dir: Folder with ``images/``, ``masks/`` (class index 0..K-1, 255 = ignore, 8 or 16 bit, same stems) and
            ``meta.json`` ("classes", and if wanted "name" and "palette").
        out: Folder to write. An earlier one of ours is reused or replaced; any other is refused.
        val_pattern: Images whose stem matches are for validation, such as 'tile2_*'; None for a sixth of all, chosen by
            ``seed``. Where images are neighbours, name a place, so that no neighbour of one is trained on.
        labelled_fraction: Part of the training images that counts as labelled, between 0 and 1.
        downscale: Images shrink by this whole factor, by area; masks by majority vote (``shrink_mask``).
        tile_size: Side of a mask for synthesis, in pixels after shrinking.
        piece_size: ``train`` and ``judge`` images are cut into pieces of at most this side, half overlapping, so that a
            small training crop does not cost decoding a large image.
        num_synthesis: Masks for synthesis, at most.
        seed: Names the choice of images and tiles.

    Returns:
        What ``meta.json`` holds.

    Raises:
        ValueError: An option out of range, too few or unusable files in ``data_dir`` (all problems at once, with file
            names), no usable tile, or ``out`` exists and is not ours.
    """
    wrong = [f'`{name}` must be at least {least}, got {value}' for name, value, least in
             (('downscale', downscale, 1), ('tile_size', tile_size, 2), ('piece_size', piece_size, 2),
             ('num_synthesis', num_synthesis, 1))
             if value < least]
    if not 0 < labelled_fraction < 1:
        wrong.append(f'`labelled_fraction` must lie between 0 and 1, got {labelled_fraction}')
    refuse('cannot split', wrong)
    data_dir = Path(data_dir)
    about, sources = read_folder(data_dir)
    train, val, held_back = _assign(sources, data_dir, val_pattern, labelled_fraction, seed)
    parts = {stem: names for group, names in ((train, ('train', 'judge')), (val, ('val',)), (held_back, ('judge',)))
             for stem in group}

    def fill(folder: Path) -> None:
        masks = _write_parts(folder, data_dir, sources, parts, len(about['classes']), downscale, piece_size)
        _write_synthesis(folder, cut_tiles({stem: masks[stem] for stem in held_back}, tile_size, num_synthesis, seed))

    settings = dict(format=_FORMAT, kind='split', val_pattern=val_pattern, labelled_fraction=labelled_fraction,
                    downscale=downscale, tile_size=tile_size, piece_size=piece_size, num_synthesis=num_synthesis,
                    seed=seed, sources=_fingerprint(data_dir, sources))
    return publish(Path(out), dict(**about, seed=seed), settings, fill)


def _assign(sources: list[Source], data_dir: Path, val_pattern: str | None, labelled_fraction: float,
            seed: int) -> tuple[list[str], list[str], list[str]]:
    """Choose the stems for train, for val, and those held back."""
    stems = [stem for stem, _, _ in sources]
    if len(stems) < 3:
        raise ValueError(f'{data_dir} has {len(stems)} labelled image(s); at least 3 are needed: one to train on, '
                         'one to validate on, one held back for the masks to synthesize for; cut large images up')
    rng = np.random.default_rng(derive_seed(seed, 'split'))
    if val_pattern is None:
        val = sorted(rng.permutation(stems)[:max(1, round(len(stems) / 6))].tolist())
        print_log(f'{len(val)} images chosen for validation by seed; if images are neighbours, name a place by '
                  '`val_pattern`', logger='current')
    else:
        val = fnmatch.filter(stems, val_pattern)
        if not val:
            raise ValueError(f'no image of {data_dir} matches `val_pattern` = {val_pattern!r}; the first is '
                             f'{stems[0]!r}')
    rest = [stem for stem in stems if stem not in val]
    if len(rest) < 2:
        raise ValueError(f'`val_pattern` = {val_pattern!r} takes {len(val)} of the {len(stems)} images of {data_dir}; '
                         'at least 2 must be left, one to train on and one held back: give a narrower pattern')
    order = rng.permutation(rest).tolist()
    num_labelled = min(max(1, int(len(rest) * labelled_fraction + 0.5)), len(rest) - 1)
    return order[:num_labelled], val, order[num_labelled:]


def _write_parts(folder: Path, data_dir: Path, sources: list[Source], parts: dict[str, tuple[str, ...]],
                 num_classes: int, downscale: int, piece_size: int) -> dict[str, Uint8]:
    """Write every image into its parts; gives the masks by stem. Refuses only after all files were looked at."""
    masks, problems = {}, []
    for stem, image_file, mask_file in progress_bar(sources, unit='image', title='splitting'):
        try:
            image, masks[stem] = read_pair(image_file, mask_file, num_classes, downscale)
        except ValueError as error:
            problems.append(str(error))
            continue
        for part in parts[stem]:
            pieces = {stem: np.s_[:, :]} if part == 'val' else piece_windows(stem, image.shape[:2], piece_size)
            for name, window in pieces.items():
                write_pair(folder, part, name, image[window], masks[stem][window])
    refuse(f'cannot use {data_dir}', problems)
    return masks


# ---------------------------------------------------------------------------------------------------------------- tiles
def _drawn_tiles(count: int, size: int, tile_size: int, seed: int) -> Iterator[tuple[str, Uint8]]:
    """Tiles of newly drawn layouts that show at least two classes."""
    found = 0
    for scene in range(20 * count):
        for top, left, tile in grid(draw_mask(derive_seed(seed, 'synthesis', scene), size), tile_size):
            if found < count and tile.min() < tile.max():
                found += 1
                yield f'{scene:04d}_y{top}_x{left}', tile
        if found == count:
            return
    raise ValueError(f'only {found} of `num_synthesis` = {count} tiles show two classes; raise `tile_size`, now '
                     f'{tile_size}')


# -------------------------------------------------------------------------------------------------------------- writing
def _write_synthesis(folder: Path, tiles: Iterable[tuple[str, Uint8]]) -> None:
    (folder / 'ann_dir/synthesis').mkdir(parents=True)
    lines = []
    for name, tile in tiles:
        Image.fromarray(tile).save(folder / f'ann_dir/synthesis/{name}.png')
        lines.append(json.dumps({'source': f'ann_dir/synthesis/{name}.png'}) + '\n')
    (folder / 'synthesis.jsonl').write_text(''.join(lines), encoding='utf-8')


def _fingerprint(data_dir: Path, sources: list[Source]) -> str:
    """Hash of the files' names and sizes: enough to see a folder change, without reading it."""
    files = [data_dir / 'meta.json', *(file for _, image, mask in sources for file in (image, mask))]
    return hashlib.sha256(json.dumps([[file.name, file.stat().st_size] for file in files]).encode()).hexdigest()
