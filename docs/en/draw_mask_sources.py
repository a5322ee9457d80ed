"""Draw docs/en/images/mask_sources.png, the picture of docs/en/masks.md: ``python docs/en/draw_mask_sources.py``."""
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmsynth.synthesis.build import build_dataset  # noqa: E402
from mmsynth.visualization import colorize, draw_grid, save_png  # noqa: E402
from projects.demo.landcover import CLASSES, PALETTE, draw_mask  # noqa: E402

SEEDS = (3, 8, 11, 20)
NUM_DONORS = 24
SIZE = 128
SOURCES = {
    'flips, quarter turns': dict(type='mmsynth.TransformedMasks', seed=2),
    'turns, zooms': dict(type='mmsynth.TransformedMasks', max_angle=45, scale_range=(0.6, 1.8)),
    "fill='ignore'": dict(type='mmsynth.TransformedMasks', max_angle=45, scale_range=(0.6, 1.8), fill='ignore'),
    'buildings pasted': dict(type='mmsynth.PastedMasks', classes=['building'], onto=['background', 'field'],
                             num_objects=(4, 8), min_pixels=40, margin=2),
    'water pasted': dict(type='mmsynth.PastedMasks', classes=['water'], onto=['background', 'field', 'forest'],
                         num_objects=(1, 2), min_pixels=60, min_visible=0.7),
}


def masks_of(source: dict, folder: Path) -> list[np.ndarray]:
    """The masks of a mask source around the drawn ones, each (S, S), uint8."""
    shown = dict(dataset=masks_in(folder / 'shown'))
    if source['type'] == 'mmsynth.PastedMasks':
        shown['donors'] = masks_in(folder / 'donors')
    return [sample['data_samples'].gt_sem_seg.data[0].numpy() for sample in build_dataset(source | shown)]


def masks_in(folder: Path) -> dict:
    """The config of a folder of masks."""
    return dict(
        type='mmsynth.ManifestDataset', data_prefix=dict(seg_map_path=str(folder)), masks_only=True,
        metainfo=dict(classes=CLASSES, palette=PALETTE),
        pipeline=[dict(type='mmsynth.LoadSegMap'), dict(type='mmsynth.PackSynthInputs')])


def main() -> None:
    """Draw the masks, change them, and lay them out side by side."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part, seeds in dict(shown=SEEDS, donors=range(100, 100 + NUM_DONORS)).items():
            (folder / part).mkdir()
            for seed in seeds:
                Image.fromarray(draw_mask(seed, SIZE)).save(folder / part / f'{seed:04d}.png')
        columns = {'mask': [draw_mask(seed, SIZE) for seed in SEEDS]}
        columns |= {title: masks_of(source, folder) for title, source in SOURCES.items()}
    tiles = {title: [colorize(mask, PALETTE) for mask in masks] for title, masks in columns.items()}
    legend = [*zip(CLASSES, PALETTE), ('unlabelled', (0, 0, 0))]
    save_png(draw_grid(tiles, tile_size=160, legend=legend), ROOT / 'docs' / 'en' / 'images' / 'mask_sources.png')


if __name__ == '__main__':
    main()
