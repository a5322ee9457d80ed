"""Tiny archives of the published sets, in the layouts they are published in."""
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def save(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode is not None:
        Image.frombytes(mode, values.shape[1::-1], values.tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)


def picture(size: tuple[int, int]) -> np.ndarray:
    return RNG.integers(0, 256, (*size, 3), dtype=np.uint8)


def labels(size: tuple[int, int], values: Sequence) -> np.ndarray:
    """Values, or colours, that all occur, the first in the upper left corner."""
    index = np.arange(size[0] * size[1]).reshape(size) // 3 % len(values)
    return np.array(values, np.uint8)[index]


def zip_up(folder: Path, name: str, *, inside: bool = True) -> None:
    """Put a subfolder into NAME.zip beside it and remove it; its files at the top of the zip unless ``inside``."""
    subfolder = folder / name
    with zipfile.ZipFile(folder / f'{name}.zip', 'w') as archive:
        for path in sorted(subfolder.rglob('*')):
            if path.is_file():
                archive.write(path, path.relative_to(folder if inside else subfolder))
                path.unlink()


def write_loveda(root: Path, size: tuple[int, int] = (16, 16)) -> None:
    number = 0
    for part in ('Train', 'Val', 'Test'):
        for domain in ('Rural', 'Urban'):
            save(root / part / domain / 'images_png' / f'{number}.png', picture(size))
            if part != 'Test':
                save(root / part / domain / 'masks_png' / f'{number}.png', labels(size, range(8)))
            number += 1


def write_fusu(root: Path, size: tuple[int, int] = (16, 16), parts: Sequence[str] = ('', )) -> None:
    for part in parts:
        for name in ('6_255', '6_256', '7_1', '8_3', '9_3', '10_4'):
            for date in '12':
                save(root / part / f'im{date}' / f'{part}{name}.png', picture(size))
                folder = f'label{date}' if part else f'im{date}_label'
                save(root / part / folder / f'{part}{name}.png', labels(size, range(18)))


def write_fusu_of_tisynth(root: Path, size: tuple[int, int] = (16, 16)) -> None:
    for part in ('train', 'test'):
        save(root / f'img_{part}' / f'{part}1.jpg', picture(size))
        save(root / f'label_{part}' / f'{part}1.png', labels(size, [*range(17), 255]))


def write_gid(root: Path, kind: int, colours: Sequence = (), size: tuple[int, int] = (40, 50)) -> None:
    """Six scenes; of 24 classes with 8-bit images of four bands."""
    for number in range(6):
        name = f'GF2_PMS{number}__L1A000-MSS1'
        if kind == 24:
            four = np.dstack([np.full(size, 200, np.uint8), picture(size)])
            save(root / 'Image__8bit_NirRGB' / f'{name}.tif', four, 'CMYK')
            save(root / 'Annotation__index' / f'{name}_24label.png', labels(size, range(25)))
        else:
            save(root / 'image_RGB' / f'{name}.tif', picture(size))
            save(root / f'label_{kind}classes' / f'{name}_label.tif', labels(size, [(0, 0, 0), *colours]))


def write_potsdam(root: Path, colours: Sequence, size: tuple[int, int] = (30, 30)) -> None:
    for tile in ('2_10', '2_13', '6_7'):
        save(root / '2_Ortho_RGB' / f'top_potsdam_{tile}_RGB.tif', picture(size))
        save(root / '5_Labels_all' / f'top_potsdam_{tile}_label.tif', labels(size, colours))


def write_isaid(root: Path, colours: Sequence, size: tuple[int, int] = (20, 30)) -> None:
    for part, name in (('train', 'P0000'), ('val', 'P0003'), ('test', 'P0006')):
        save(root / part / 'images' / 'images' / f'{name}.png', picture(size))
        if part != 'test':
            folder = root / part / 'Semantic_masks' / 'images'
            save(folder / f'{name}_instance_color_RGB.png', labels(size, colours))
            save(root / part / 'Instance_masks' / 'images' / f'{name}_instance_id_RGB.png', labels(size, colours))


def write_dubai(root: Path, colours: Sequence, size: tuple[int, int] = (30, 40)) -> None:
    for tile in (1, 2, 3):
        for number in (1, 2):
            folder = root / 'Semantic segmentation dataset' / f'Tile {tile}'
            save(folder / 'images' / f'image_part_00{number}.jpg', picture(size))
            save(folder / 'masks' / f'image_part_00{number}.png', labels(size, colours))
