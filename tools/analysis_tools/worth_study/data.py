"""The data of one case of a study: a folder of labelled images, split by place.

A *place* is what images of one name have in common up to a pattern's first group (tile1_part_003 → tile1): adjacent
images belong to one place and never to two parts. One place is the test part, another the inner validation part, by
which rows are chosen; both go round with the seed. Of the images of the other places a share counts as labelled.

::

    OUT/{img_dir,ann_dir}/{train,val,test}/*.png    OUT/img_dir/unlabelled/*.png
    OUT/{img_dir,ann_dir}/synthesis/*.png           tiles of the labelled images, turned and flipped
    OUT/synthesis.jsonl                             their list, the masks to synthesize for
    OUT/places/PLACE/{synthesis.jsonl,others.txt}   the tiles of a labelled place; the labelled images of all others
    OUT/meta.json
"""
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mmsynth.utils import derive_seed
from mmsynth.utils.files import atomic_write
from projects.demo.labelled_folder import Uint8, read_folder, read_pair
from projects.demo.tiles import cut_tiles, piece_windows, write_pair

PLACE = r'^([^_]+)_'
Pair = tuple[Uint8, Uint8]  # image (H, W, 3), RGB, and mask (H, W)


def split_places(stems: list[str], pattern: str, share: float, seed: int) -> dict[str, list[str]]:
    """Assign images to parts: 'test' and 'val' are a place each, 'train' and 'unlabelled' share the others.

    Args:
        stems: Names of the images.
        pattern: Regular expression whose first group names an image's place.
        share: Share of the training images that are labelled, at least one; those of a smaller share are among those
            of a larger one.
        seed: The test place is number ``seed`` of the places in alphabetical order, the inner validation part the next.

    Raises:
        ValueError: If a name does not match, or there are fewer than three places.
    """
    found = {stem: re.search(pattern, stem) for stem in stems}
    wrong = [stem for stem, match in found.items() if match is None or not match.groups()]
    if wrong:
        raise ValueError(f'`--places` {pattern!r} must have a group that names the place of every image; it finds none '
                         f'in {wrong[0]!r} ({len(wrong)} such images).')
    places = sorted({match.group(1) for match in found.values()})
    if len(places) < 3:
        raise ValueError(f'`--places` {pattern!r} finds {len(places)} place(s), {", ".join(places)}; at least 3 are '
                         'needed: to train on, to choose by, and to report on.')
    test, val = places[seed % len(places)], places[(seed + 1) % len(places)]
    parts = {part: [stem for stem in stems if found[stem].group(1) == place]
             for part, place in (('test', test), ('val', val))}
    rest = [stem for stem in stems if stem not in {*parts['test'], *parts['val']}]
    order = np.random.default_rng(derive_seed(seed, 'labelled')).permutation(rest).tolist()
    count = max(1, round(share * len(rest)))
    return parts | dict(train=sorted(order[:count]), unlabelled=sorted(order[count:]))


def write_case(data_dir: str | Path, out: str | Path, *, places: str = PLACE, share: float, seed: int,
               downscale: int = 4, tile_size: int = 48, piece_size: int = 96, num_masks: int = 160) -> dict[str, Any]:
    """Write the data of one case; a folder that is complete is left as it is.

    Args:
        data_dir: Folder with ``images/``, ``masks/`` and ``meta.json``.
        out: Folder to write.
        places, share, seed: See :func:`split_places`.
        downscale: Whole factor by which images shrink.
        tile_size: Side of a mask to synthesize for, in pixels after shrinking.
        piece_size: Training images are cut into pieces of at most this side, half overlapping.
        num_masks: Masks to synthesize for, at most.

    Returns:
        What ``meta.json`` holds: name, classes, palette, parts (names of the images), settings, and the labelled places
        that have tiles.

    Raises:
        ValueError: If the folder is complete and was written with other settings.
    """
    out = Path(out)
    settings = dict(places=places, share=share, seed=seed, downscale=downscale, tile_size=tile_size,
                    piece_size=piece_size, num_masks=num_masks)
    if (out / 'meta.json').is_file():  # written last
        meta = json.loads((out / 'meta.json').read_text(encoding='utf-8'))
        changed = [f'`{name}` was {meta["settings"][name]!r} and is {value!r}' for name, value in settings.items()
                   if meta['settings'][name] != value]
        if changed:
            raise ValueError(f'{out} was written with other settings: {"; ".join(changed)}. Give another `--out-dir`.')
        return meta
    shutil.rmtree(out, ignore_errors=True)  # what a killed run left
    about, sources = read_folder(Path(data_dir))
    parts = split_places([stem for stem, _, _ in sources], places, share, seed)
    part_of = {stem: part for part, stems in parts.items() for stem in stems}
    labelled, pieces = {}, {}
    for stem, image_file, mask_file in sources:
        part = part_of[stem]
        image, mask = read_pair(image_file, mask_file, len(about['classes']), downscale)
        windows = {stem: np.s_[:, :]} if part in ('val', 'test') else piece_windows(stem, mask.shape, piece_size)
        for name, window in windows.items():
            write_pair(out, part, name, image[window], None if part == 'unlabelled' else mask[window])
        if part == 'train':
            labelled[stem], pieces[stem] = (image, mask), list(windows)
    place_of = {stem: re.search(places, stem).group(1) for stem in labelled}
    tiles = _write_tiles(out, labelled, tile_size, num_masks, seed)
    for place in sorted({place_of[stem] for stem in tiles}):
        lines = [line for stem, own in tiles.items() if place_of[stem] == place for line in own]
        others = [name for stem, names in pieces.items() if place_of[stem] != place for name in names]
        (out / 'places' / place).mkdir(parents=True, exist_ok=True)
        (out / 'places' / place / 'synthesis.jsonl').write_text(''.join(lines), encoding='utf-8')
        (out / 'places' / place / 'others.txt').write_text('\n'.join(others), encoding='utf-8')
    meta = dict(about, parts=parts, settings=settings, places=sorted({place_of[stem] for stem in tiles}))
    atomic_write(out / 'meta.json', json.dumps(meta, indent=1).encode())
    return meta


def _write_tiles(out: Path, labelled: dict[str, Pair], side: int, count: int, seed: int) -> dict[str, list[str]]:
    """Write tiles of masks, with their images, and ``synthesis.jsonl``; its lines by the name of the labelled image."""
    lines: dict[str, list[str]] = {}
    for name, tile in cut_tiles({stem: mask for stem, (_, mask) in labelled.items()}, side, count, seed):
        stem, *numbers = re.fullmatch(r'(.+)_y(\d+)_x(\d+)_v(\d)', name).groups()
        top, left, variant = map(int, numbers)
        image = np.rot90(labelled[stem][0][top:top + side, left:left + side], variant % 4)
        write_pair(out, 'synthesis', name, np.ascontiguousarray(image[:, ::-1] if variant > 3 else image), tile)
        lines.setdefault(stem, []).append(json.dumps(dict(
            source=f'ann_dir/synthesis/{name}.png', target=f'img_dir/synthesis/{name}.png')) + '\n')
    (out / 'synthesis.jsonl').write_text(''.join(line for own in lines.values() for line in own), encoding='utf-8')
    return lines
