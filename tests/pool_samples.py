"""Pools written by hand, with what a filter leaves in them."""
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsynth.pool import Pool
from mmsynth.utils.files import file_name

CLASSES, PALETTE = ('ground', 'house', 'water'), ((0, 0, 0), (255, 0, 0), (0, 0, 255))
GENERATOR = {'type': 'mmsynth.TODSynth', 'config_sha256': 'ab' * 8, 'weights_sha256': None}


def write_pool(root: Path, samples: list[dict[str, Any]], classes: tuple[str, ...] = CLASSES,
               palette: tuple[tuple[int, ...], ...] = PALETTE) -> Pool:
    """A pool with samples 's0', 's1', …: images of noise, masks half of class ``i % 3`` and half unlabelled.

    Args:
        root: The pool's folder.
        samples: One dict per sample, with what :meth:`Pool.add` takes; the rest is filled in.
        classes: Names.
        palette: Colours.
    """
    rng = np.random.default_rng(0)
    with Pool.create(root, {'num_steps': 23, 'guidance': {'type': 'CRFM', 'trust': None}}, classes, palette) as pool:
        for index, sample in enumerate(samples):
            mask = np.full((16, 24), 255, np.uint8)
            mask[:8] = index % len(classes)
            values = dict(image=rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), mask=mask, source_mask='tile.png',
                          prompt='p', seed=index, generator=GENERATOR) | sample
            pool.add(f's{index}', **values)
    return Pool.open(root)


def filter_entry(index: int, *, keep: bool = True, gone: float = 48, valid: float = 0.375, hardness: float = 1.,
                 classes: tuple[str, ...] = CLASSES, **changes: Any) -> dict[str, Any]:
    """What the filter records of sample ``s<index>`` of :func:`write_pool`, which has 192 labelled pixels."""
    name = classes[index % len(classes)]
    return dict(filter_sha256='cd' * 8, labels_sha256='ef' * 32, label=f'filtered/{file_name(f"s{index}")}.png',
                weight=None, keep=keep, reason='weak class house' if keep else f'{valid * 100:.0f} % valid, below 80 %',
                valid=valid, pixels={name: 192}, removed={name: gone}, loss={name: 0.5},
                hardness=hardness) | changes


def write_label(pool: Pool, index: int, folder: str = 'filtered') -> None:
    """The filtered label of a sample, or its weight map: the upper quarter of the mask's labels is gone."""
    record = pool.records[index]
    mask = pool.load_mask(record).copy()
    mask[:2] = 255 if folder == 'filtered' else 0
    (pool.root / folder).mkdir(exist_ok=True)
    Image.fromarray(mask).save(pool.root / folder / Path(record.mask).name)
