"""Every published set, from a tiny archive in its layout to the data set that the shipped config builds."""
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import (
    labels,
    picture,
    save,
    write_dubai,
    write_fusu,
    write_fusu_of_tisynth,
    write_gid,
    write_isaid,
    write_loveda,
    write_potsdam,
    zip_up,
)
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmseg.datasets import PotsdamDataset, iSAIDDataset
from PIL import Image
from small_run import ROOT

import mmsynth  # noqa: F401 - registers
from mmsynth.datasets import DubaiDataset
from mmsynth.datasets.conversion import SplitRule, convert
from mmsynth.datasets.conversion.archives import GID_CLASSES, dubai, fusu, gid, isaid, loveda, potsdam

DUBAI = [(155, 155, 155), (0, 0, 0), *map(tuple, DubaiDataset.METAINFO['palette'])]
POTSDAM = list(map(tuple, PotsdamDataset.METAINFO['palette']))
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
ISAID = list(map(tuple, iSAIDDataset.METAINFO['palette']))


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def build(config: str, part: str, data_root: Path) -> object:
    """The data set of a shipped config, on a folder."""
    dataset = Config.fromfile(ROOT / 'configs' / config)[part].dataset
    dataset.data_root = str(data_root)
    for transform in dataset.pipeline:
        if 'folder' in transform:
            transform.folder = str(data_root / Path(*Path(transform.folder).parts[2:]))  # data/SET/…
        if transform.type == 'RandomCrop':
            transform.crop_size = (8, 8)  # the archives here are that small
        if transform.type == 'ResizeShortestEdge':
            transform.scale = 10
    return DATASETS.build(dataset)


def ids(dataset: object, index: int = 0) -> set[int]:
    return set(np.unique(dataset[index]['data_samples'].gt_sem_seg.data.numpy()).tolist())


@pytest.mark.parametrize('zipped', [False, True])
def test_loveda(tmp_path: Path, zipped: bool) -> None:
    write_loveda(tmp_path / 'raw')
    masks = {path.stem: read(path) for path in (tmp_path / 'raw').rglob('masks_png/*.png')}
    images = {path.stem: path.read_bytes() for path in (tmp_path / 'raw').rglob('images_png/*.png')}
    if zipped:
        for part in ('Train', 'Val', 'Test'):
            zip_up(tmp_path / 'raw', part)
    out = tmp_path / 'out'
    summary = convert(*loveda(tmp_path / 'raw'), out)
    assert {name: (part.tiles, part.ignored) for name, part in summary.parts.items()} == {
        'train': (2, 2 * 32 + 2), 'val': (2, 2 * 32 + 2), 'test': (2, 0)}
    for name, part in (('0', 'train'), ('1', 'train'), ('3', 'val')):
        np.testing.assert_array_equal(read(out / f'ann_dir/{part}/{name}.png'), masks[name])
    assert (out / 'img_dir/test/4.png').read_bytes() == images['4']
    train = build('segmentation/deeplabv3plus_r50_1xb8-40k_loveda-512x512.py', 'train_dataloader', out)
    val = build('segmentation/deeplabv3plus_r50_1xb8-40k_loveda-512x512.py', 'val_dataloader', out)
    assert (len(train), len(val)) == (2, 2) and ids(val) == {*range(7), 255}
    assert len(build('todsynth/todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py', 'train_dataloader', out)) == 2
    domains = build('tisynth/tisynth_sd15_1xb2-100k_loveda-rural2urban-512x512.py', 'synthesis', out)
    assert len(domains) == 1 and domains.get_data_info(0)['seg_map_path'].endswith('Train/Rural/masks_png/0.png')
    pick = [transform for transform in domains.pipeline.transforms if type(transform).__name__ == 'PickReference']
    assert Path(pick[0].folder) == out / 'Train/Urban/images_png' and (Path(pick[0].folder) / '1.png').is_file()


def test_fusu(tmp_path: Path) -> None:
    """Divided by the number before the underscore; both dates of a patch lie in one part."""
    write_fusu(tmp_path / 'raw')
    raw = read(tmp_path / 'raw/im2_label/7_1.png').astype(int)
    out = tmp_path / 'out'
    summary = convert(*fusu(tmp_path / 'raw'), out)
    np.testing.assert_array_equal(read(out / 'masks/7_1_t2.png'), np.where(raw == 0, 255, raw - 1))
    parts = {part: {Path(json.loads(line)['source']).stem for line in (out / f'{part}.jsonl').read_text().splitlines()}
             for part in ('train', 'val')}
    places = {part: {name.split('_')[0] for name in names} for part, names in parts.items()}
    assert len(places['val']) == 1 and not places['train'] & places['val'] and len(parts['train'] | parts['val']) == 12
    assert all(part.pixels.all() for part in summary.parts.values()), 'all 17 classes'
    val = build('segmentation/pspnet_r50_1xb8-40k_fusu-512x512.py', 'val_dataloader', out)
    assert ids(val) == {*range(17), 255} and len(val) == len(parts['val'])
    save(out / 'references' / 'r.png', picture((16, 16)))  # what a user puts there
    assert len(build('tisynth/tisynth_sd15_1xb2-100k_fusu-512x512.py', 'synthesis', out)) == len(parts['train'])
    named = fusu(tmp_path / 'raw', SplitRule(val=('6', )))[0]
    assert {pair.name for pair in named if pair.part == 'val'} == {'6_255_t1', '6_255_t2', '6_256_t1', '6_256_t2'}


def test_fusu_divided_by_its_folders(tmp_path: Path) -> None:
    write_fusu(tmp_path / 'raw', parts=('train', 'val'))
    pairs, _ = fusu(tmp_path / 'raw')
    assert {pair.name.startswith(pair.part) for pair in pairs} == {True} and len(pairs) == 24
    with pytest.raises(ValueError, match='divided already, into train and val'):
        fusu(tmp_path / 'raw', SplitRule(val_share=0.2))


def test_fusu_as_tisynth_has_it(tmp_path: Path) -> None:
    write_fusu_of_tisynth(tmp_path / 'raw')
    convert(*fusu(tmp_path / 'raw'), tmp_path / 'out')
    np.testing.assert_array_equal(read(tmp_path / 'out/masks/test1.png'), read(tmp_path / 'raw/label_test/test1.png'))
    val = build('segmentation/pspnet_r50_1xb8-40k_fusu-512x512.py', 'val_dataloader', tmp_path / 'out')
    assert val.get_data_info(0)['img_path'].endswith('images/test1.jpg') and ids(val) == {*range(17), 255}


def test_gid_24(tmp_path: Path) -> None:
    """Four 8-bit bands, which TIFF calls CMYK: the last three are red, green and blue."""
    write_gid(tmp_path / 'raw', 24)
    [scene, *_] = sorted((tmp_path / 'raw/Image__8bit_NirRGB').iterdir())
    bands = np.asarray(Image.open(scene))
    pairs, recipe = gid(tmp_path / 'raw', rule=SplitRule(val=('GF2_PMS5__L1A000-MSS1', )))
    assert recipe.tile_size == 512 and recipe.table.classes == tuple(GID_CLASSES[24])
    out = tmp_path / 'out'
    convert(pairs, replace(recipe, tile_size=20), out)
    np.testing.assert_array_equal(read(out / f'images/{scene.stem}_y00020_x00030.png'), bands[20:40, 30:50, 1:])
    raw = labels((40, 50), range(25)).astype(int)
    np.testing.assert_array_equal(read(out / f'masks/{scene.stem}_y00020_x00030.png'),
                                  np.where(raw == 0, 255, raw - 1)[20:40, 30:50])
    config = 'tisynth/tisynth_sd15_1xb2-100k_gid-512x512.py'
    train, synthesis = build(config, 'train_dataloader', out), build(config, 'synthesis', out)
    assert len(train) == len(synthesis) == 5 * 6 and ids(train) <= {*range(24), 255}
    sample = synthesis[0]['data_samples']
    assert sample.reference.data.shape[0] == 3
    info = synthesis.get_data_info(0)
    assert Path(info['seg_map_path']).name[:8] != Path(info['reference_path']).name[:8], 'of another scene'


@pytest.mark.parametrize('kind', [5, 15])
def test_gid_5_and_15(tmp_path: Path, kind: int) -> None:
    write_gid(tmp_path / 'raw', kind, list(GID_CLASSES[kind].values()))
    pairs, recipe = gid(tmp_path / 'raw', kind)
    assert [pair.part for pair in pairs].count('val') == 1
    part = convert(pairs, recipe, tmp_path / 'out').parts['train']
    assert part.pixels.all() and len(part.pixels) == kind
    raw = labels((40, 50), range(kind + 1)).astype(int)
    tile = read(next(iter((tmp_path / 'out/masks').iterdir())))
    np.testing.assert_array_equal(tile[:40, :50], np.where(raw == 0, 255, raw - 1))


def test_gid_15_as_its_challenge_has_it(tmp_path: Path) -> None:
    for part in ('train', 'val', 'test'):
        save(tmp_path / f'GID/img_dir/{part}/{part}_1.tif', picture((20, 20)))
        if part != 'test':
            save(tmp_path / f'GID/ann_dir/{part}/{part}_1_15label.png', labels((20, 20), range(16)))
    pairs, recipe = gid(tmp_path, 15)
    assert {pair.name: pair.part for pair in pairs} == dict(train_1='train', val_1='val', test_1='test')
    convert(pairs, recipe, tmp_path / 'out')
    assert [path.name for path in (tmp_path / 'out/unlabelled').iterdir()] == ['test_1_y00000_x00000.png']


@pytest.mark.parametrize('zipped', [False, True])
def test_potsdam(tmp_path: Path, zipped: bool) -> None:
    """Off-colour labels, as two published files have, count as the nearest of the cube's corners."""
    write_potsdam(tmp_path / 'raw', POTSDAM)
    odd = read(tmp_path / 'raw/5_Labels_all/top_potsdam_6_7_label.tif')
    exact = odd.copy()
    odd[(odd == (255, 255, 0)).all(axis=2)] = (252, 255, 0)
    odd[0, :3] = (225, 227, 227)
    Image.fromarray(odd).save(tmp_path / 'raw/5_Labels_all/top_potsdam_6_7_label.tif')
    if zipped:
        zip_up(tmp_path / 'raw', '2_Ortho_RGB')
        zip_up(tmp_path / 'raw', '5_Labels_all', inside=False)
    pairs, recipe = potsdam(tmp_path / 'raw')
    assert {pair.name: pair.part for pair in pairs} == {'2_10': 'train', '2_13': 'val', '6_7': 'train'}
    assert recipe.tile_size == 512
    convert(pairs, replace(recipe, tile_size=None), tmp_path / 'out')
    expected = np.zeros((30, 30), np.uint8)
    for index, colour in enumerate(POTSDAM):
        expected[(exact == colour).all(axis=2)] = index + 1
    np.testing.assert_array_equal(read(tmp_path / 'out/ann_dir/train/6_7.png'), expected)
    dataset = PotsdamDataset(data_root=str(tmp_path / 'out'), pipeline=LOAD,
                             data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'))
    assert ids(dataset) == set(range(6))


def test_potsdam_without_boundaries(tmp_path: Path) -> None:
    write_potsdam(tmp_path, POTSDAM)
    for path in list((tmp_path / '5_Labels_all').iterdir()):
        save(tmp_path / '5_Labels_all_noBoundary' / f'{path.stem}_noBoundary.tif',
             labels((30, 30), [(0, 0, 0), *POTSDAM[:5]]))
    ignored = [convert(*potsdam(tmp_path, kind), tmp_path / 'out', dry_run=True).parts['val'].ignored
               for kind in (None, 'no-boundary', 'all')]
    padding = 512 * 512 - 900
    assert ignored[0] == ignored[1] == 150 + padding and ignored[2] == padding
    save(tmp_path / '5_Labels_all/top_potsdam_2_10_label.tif', labels((30, 30), [(255, 0, 255)]))
    with pytest.raises(ValueError, match='2_10_label.tif holds labels .*#FF00FF in 900 pixels'):
        convert(*potsdam(tmp_path, 'all'), tmp_path / 'out', dry_run=True)


def test_isaid(tmp_path: Path) -> None:
    write_isaid(tmp_path / 'raw', ISAID)
    pairs, recipe = isaid(tmp_path / 'raw')
    assert (recipe.tile_size, recipe.stride) == (896, 512)
    convert(pairs, replace(recipe, tile_size=20, stride=15), tmp_path / 'out')
    assert sorted(path.name for path in (tmp_path / 'out/ann_dir/train').iterdir()) == [
        f'P0000_y00000_x000{left}_instance_color_RGB.png' for left in ('00', '10')]
    np.testing.assert_array_equal(read(tmp_path / 'out/ann_dir/val/P0003_y00000_x00010_instance_color_RGB.png'),
                                  labels((20, 30), range(16))[:, 10:])
    assert len(list((tmp_path / 'out/img_dir/test').iterdir())) == 2
    dataset = iSAIDDataset(data_root=str(tmp_path / 'out'), pipeline=LOAD,
                           data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'))
    assert len(dataset) == 2 and ids(dataset) == set(range(16))


def test_dubai(tmp_path: Path) -> None:
    write_dubai(tmp_path / 'raw', DUBAI)
    image = (tmp_path / 'raw/Semantic segmentation dataset/Tile 2/images/image_part_001.jpg').read_bytes()
    zip_up(tmp_path / 'raw', 'Semantic segmentation dataset')
    convert(*dubai(tmp_path / 'raw/Semantic segmentation dataset.zip'), tmp_path / 'out')
    assert (tmp_path / 'out/images/tile2_part_001.jpg').read_bytes() == image
    raw = labels((30, 40), range(7)).astype(int)
    np.testing.assert_array_equal(read(tmp_path / 'out/masks/tile2_part_001.png'), np.where(raw < 2, 255, raw - 2))
    val = build('segmentation/segformer_b2_1xb8-40k_dubai-512x512.py', 'val_dataloader', tmp_path / 'out')
    assert {Path(val.get_data_info(index)['img_path']).name for index in range(len(val))} == {
        'tile2_part_001.jpg', 'tile2_part_002.jpg'} and ids(val) == {*range(5), 255}
    train = build('todsynth/todsynth_sd35m_4xb1-amp-40k_dubai-512x512.py', 'train_dataloader', tmp_path / 'out')
    assert len(train) == 4 and 'building' in train[0]['data_samples'].prompt


@pytest.mark.parametrize('find', [loveda, fusu, gid, potsdam, isaid, dubai])
def test_a_folder_of_something_else(tmp_path: Path, find: Callable) -> None:
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(FileNotFoundError, match='`source` holds no images where .*Files there: notes.txt'):
        find(tmp_path)


def test_two_copies_of_an_image(tmp_path: Path) -> None:
    write_loveda(tmp_path)
    write_loveda(tmp_path / 'copy')
    with pytest.raises(ValueError, match='are the same image; give the folder of one'):
        loveda(tmp_path)


def test_an_image_whose_mask_is_missing(tmp_path: Path) -> None:
    write_dubai(tmp_path, DUBAI)
    (tmp_path / 'Semantic segmentation dataset/Tile 3/masks/image_part_002.png').unlink()
    with pytest.raises(ValueError, match=r'1 image\(s\) have no mask: .*Tile 3/images/image_part_002.jpg'):
        dubai(tmp_path)
