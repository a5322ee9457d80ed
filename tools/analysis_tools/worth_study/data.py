"""The data of one case of a study: a folder of labelled images, split by place.

A *place* is what images of one name have in common up to a pattern's first group (tile1_part_003 → tile1): adjacent
images belong to one place and never to two parts. One place is the test part, another the inner validation part, by
which rows are chosen; both go round with the seed. Of the images of the other places a share counts as labelled.

::

    OUT/{img_dir,ann_dir}/{train,val,test}/*.png    OUT/img_dir/unlabelled/*.png
    OUT/ann_dir/synthesis/*.png, OUT/synthesis.jsonl   tiles of the labelled masks, turned and flipped
    OUT/meta.json
"""
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from mmsynth.utils import derive_seed
from projects.demo.labelled_folder import Source, read_folder, read_pair
from projects.demo.prepare import _cut_tiles, _pieces, _write_pair, _write_synthesis

PLACE = r'^([^_]+)_'


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
        What ``meta.json`` holds: name, classes, palette, parts (names of the images).
    """
    out = Path(out)
    if (out / 'meta.json').is_file():  # written last
        return json.loads((out / 'meta.json').read_text(encoding='utf-8'))
    about, sources = read_folder(Path(data_dir))
    parts = split_places([stem for stem, _, _ in sources], places, share, seed)
    part_of = {stem: part for part, stems in parts.items() for stem in stems}
    labelled = {}
    for source in sources:
        mask = _write_image(out, source, part_of[source[0]], len(about['classes']), downscale, piece_size)
        if part_of[source[0]] == 'train':
            labelled[source[0]] = mask
    _write_synthesis(out, _cut_tiles(labelled, tile_size, num_masks, seed))
    meta = dict(about, parts=parts)
    (out / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')
    return meta


def _write_image(out: Path, source: Source, part: str, num_classes: int, downscale: int, piece_size: int) -> np.ndarray:
    stem, image_file, mask_file = source
    image, mask = read_pair(image_file, mask_file, num_classes, downscale)
    whole = part in ('val', 'test')
    for name, window in ({stem: np.s_[:, :]} if whole else _pieces(stem, mask.shape, piece_size)).items():
        _write_pair(out, part, name, image[window], None if part == 'unlabelled' else mask[window])
    return mask
