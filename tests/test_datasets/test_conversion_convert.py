"""A conversion: what is written, that it is written whole or not at all, and what is refused."""
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsynth.datasets.conversion import ClassTable, Pair, Recipe, SplitRule, convert, raster
from mmsynth.datasets.conversion.archives import own_folder
from mmsynth.datasets.conversion.convert import _with_references
from mmsynth.datasets.conversion.files import SourceFile
from mmsynth.utils.files import FolderLock

TABLE = ClassTable.of_ids(['field', 'road', 'water'], [(1, 1, 1), (2, 2, 2), (3, 3, 3)])
RNG = np.random.default_rng(0)
GEO = pytest.mark.skipif(not raster.has_rasterio(), reason="rasterio is not installed: pip install 'mmsynth[geo]'")


def pixels(*size: int) -> np.ndarray:
    return RNG.integers(0, 256, (*size, 3), dtype=np.uint8)


def write(folder: Path, name: str, image: np.ndarray, mask: np.ndarray | None, suffix: str = '.png') -> None:
    for part, content in (('images', image), ('masks', mask)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        if content is not None:
            Image.fromarray(content).save(folder / part / f'{name}{suffix if part == "images" else ".png"}')


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two places of two images, 20 x 30 pixels."""
    for name in ('north_1', 'north_2', 'south_1', 'south_2'):
        mask = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
        mask[:, :6] = 255
        write(tmp_path / 'source', name, pixels(20, 30), mask)
    return tmp_path / 'source'


def found(source: Path, **settings: object) -> tuple[list[Pair], Recipe]:
    return own_folder(source, TABLE, title='mine', rule=SplitRule(places='^([^_]+)_', val=('south', )), **settings)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def listed(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- what is written


def test_whole_images_are_copied_and_masks_hold_ids(source: Path, tmp_path: Path) -> None:
    summary = convert(*found(source), tmp_path / 'out')
    names = ['north_1', 'north_2', 'south_1', 'south_2']
    assert listed(tmp_path / 'out') == [*(f'images/{name}.png' for name in names), *(f'masks/{name}.png' for name in
                                        names), 'meta.json', 'train.jsonl', 'val.jsonl']  # yapf: disable
    for name in names:
        image = f'images/{name}.png'
        assert (tmp_path / 'out' / image).read_bytes() == (source / image).read_bytes()
        np.testing.assert_array_equal(read(tmp_path / f'out/masks/{name}.png'), read(source / f'masks/{name}.png'))
    assert lines(tmp_path / 'out' / 'val.jsonl') == [
        dict(source=f'masks/{name}.png', target=f'images/{name}.png') for name in names[2:]]
    meta = json.loads((tmp_path / 'out' / 'meta.json').read_text())
    assert (meta['classes'], meta['palette']) == (['field', 'road', 'water'], [[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    for part, start in (('train', 0), ('val', 2)):
        masks = np.stack([read(source / f'masks/{name}.png') for name in names[start:start + 2]])
        counts = [int((masks == index).sum()) for index in range(3)]
        assert meta['parts'][part]['pixels'] == dict(zip(TABLE.classes, counts))
        assert summary.parts[part].pixels.tolist() == counts and summary.parts[part].ignored == 2 * 20 * 6


@pytest.mark.parametrize('stride', [None, 5])
def test_tiles_together_are_the_image(source: Path, tmp_path: Path, stride: int | None) -> None:
    summary = convert(*found(source, tile_size=8, stride=stride), tmp_path / 'out')
    image, mask = np.zeros((20, 30, 3), np.uint8), np.full((20, 30), 99, np.uint8)
    for line in lines(tmp_path / 'out' / 'train.jsonl'):
        name = Path(line['source']).stem
        if name.startswith('north_1'):
            top, left = int(name[-12:-7]), int(name[-5:])
            image[top:top + 8, left:left + 8] = read(tmp_path / 'out' / line['target'])
            mask[top:top + 8, left:left + 8] = read(tmp_path / 'out' / line['source'])
    np.testing.assert_array_equal(image[:, 8:], read(source / 'images/north_1.png')[:, 8:])
    np.testing.assert_array_equal(mask[:, 8:], read(source / 'masks/north_1.png')[:, 8:])
    assert summary.parts['train'].tiles == 2 * (3 * 4 if stride is None else 4 * 6)


def test_tiles_with_few_labels_are_left_out(source: Path, tmp_path: Path) -> None:
    mask = np.full((20, 30), 255, np.uint8)
    mask[0, 10], mask[:10, 20:] = 1, 2
    write(source, 'north_1', pixels(20, 30), mask)
    for least, count in ((0.0, 2), (0.01, 2), (0.011, 1), (1.0, 1)):
        pairs, recipe = found(source, tile_size=10, min_labelled=least)
        pairs = [pair for pair in pairs if pair.name == 'north_1']
        part = convert(pairs, recipe, tmp_path, dry_run=True).parts['train']
        assert (part.tiles, part.dropped) == (count, 6 - count), least


def test_small_images_are_filled_up(source: Path, tmp_path: Path) -> None:
    part = convert(*found(source, tile_size=32), tmp_path / 'out').parts['train']
    image, mask = (read(tmp_path / 'out' / folder / 'north_1_y00000_x00000.png') for folder in ('images', 'masks'))
    np.testing.assert_array_equal(image[:20, :30], read(source / 'images/north_1.png'))
    assert image.shape == (32, 32, 3) and not image[20:].any() and not image[:, 30:].any()
    assert (mask[20:] == 255).all() and (mask[:, 30:] == 255).all() and (mask[:20, 6:30] < 3).all()
    assert (part.tiles, part.padded, part.ignored) == (2, 2, 2 * (32 * 32 - 20 * 24))


def test_folders_with_zero_for_no_label(source: Path, tmp_path: Path) -> None:
    pairs, recipe = found(source)
    convert(pairs, replace(recipe, layout='folders', zero_is_ignored=True, mask_suffix='_m.png'), tmp_path / 'out')
    assert [name for name in listed(tmp_path / 'out') if 'val' in name] == [
        'ann_dir/val/south_1_m.png', 'ann_dir/val/south_2_m.png', 'img_dir/val/south_1.png', 'img_dir/val/south_2.png']
    before = read(source / 'masks/south_1.png').astype(int)
    after = read(tmp_path / 'out/ann_dir/val/south_1_m.png')
    np.testing.assert_array_equal(after, np.where(before == 255, 0, before + 1))


@pytest.mark.parametrize('layout, suffix', [('manifest', '.jpg'), ('folders', '.png')])
def test_jpeg_is_copied_where_its_suffix_may_stay(tmp_path: Path, layout: str, suffix: str) -> None:
    write(tmp_path / 's', 'a', pixels(8, 8), np.zeros((8, 8), np.uint8), '.jpg')
    convert(*own_folder(tmp_path / 's', TABLE, title='t', layout=layout), tmp_path / 'out')
    [image] = [name for name in listed(tmp_path / 'out') if 'im' in name]
    assert Path(image).suffix == suffix
    np.testing.assert_array_equal(read(tmp_path / 'out' / image), read(tmp_path / 's/images/a.jpg'))


def test_a_turned_jpeg_is_stored_as_its_mask_lies(tmp_path: Path) -> None:
    """OpenCV, which loads the images of configs, would turn it."""
    write(tmp_path / 's', 'a', pixels(8, 12), np.zeros((8, 12), np.uint8), '.jpg')
    image = Image.open(tmp_path / 's/images/a.jpg')
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / 's/images/a.jpg', exif=exif)
    convert(*own_folder(tmp_path / 's', TABLE, title='t'), tmp_path / 'out')
    assert read(tmp_path / 'out/images/a.png').shape == (8, 12, 3)


def test_a_dry_run_finds_the_same_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    dry = convert(*found(source, tile_size=8, stride=5), tmp_path / 'out', dry_run=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['source']
    wet = convert(*found(source, tile_size=8, stride=5), tmp_path / 'out')
    assert {name: part.to_dict(TABLE.classes) for name, part in dry.parts.items()} == {
        name: part.to_dict(TABLE.classes) for name, part in wet.parts.items()}
    assert 'dry run' in dry.title and 'dry run' not in wet.title


def test_the_table_of_a_summary(source: Path, tmp_path: Path) -> None:
    from rich.console import Console
    pairs, recipe = found(source)
    for pair in pairs[:2]:
        mask = np.array([[0] * 29 + [1], [255] * 30], np.uint8).repeat(10, 0)
        Image.fromarray(mask).save(pair.mask.path)
    console = Console(width=80, record=True, file=open(os.devnull, 'w'))
    console.print(convert(pairs, recipe, tmp_path, dry_run=True).table())
    rows = {cells[1].strip(): cells[2].strip() for line in console.export_text().splitlines()
            if len(cells := line.split('│')) > 3}
    assert (rows['images'], rows['tiles'], rows['water'], rows['ignored, of all pixels']) == ('2', '2', '0', '50.00 %')
    assert (rows['field'], rows['road']) == ('96.67 %', '3.33 %')


def test_references_are_of_other_places() -> None:
    rows = [(place, dict(source=f'{place}{n}', target=f'{place}{n}.png')) for n in range(5) for place in 'abc']
    chosen = {line['source']: line['ref_image'] for line in _with_references(rows)}
    assert len(chosen) == 15 and all(source[0] != image[0] for source, image in chosen.items())
    assert len(set(chosen.values())) > 5, 'not the same for all'
    assert chosen == {line['source']: line['ref_image'] for line in _with_references(rows[::-1])}
    alone = {line['source']: line['ref_image'] for line in _with_references(rows[::3])}
    assert len(alone) == 5 and all(f'{source}.png' != image for source, image in alone.items())
    assert list(_with_references(rows[:1])) == []


# ---- whole or not at all


def test_a_failed_run_leaves_nothing(source: Path, tmp_path: Path) -> None:
    write(source, 'south_2', pixels(20, 30), np.full((20, 30), 7, np.uint8))  # the last
    with pytest.raises(ValueError, match='south_2'):
        convert(*found(source), tmp_path / 'out')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['source']


def test_what_a_killed_run_left_is_cleared(source: Path, tmp_path: Path) -> None:
    left = tmp_path / '.tmp-out' / 'images'
    left.mkdir(parents=True)
    (left / 'half.png').touch()
    (tmp_path / '.tmp-out' / 'meta.json').touch()
    (tmp_path / 'out').mkdir()  # empty: taken
    convert(*found(source), tmp_path / 'out')
    assert 'images/half.png' not in listed(tmp_path / 'out') and len(listed(tmp_path / 'out')) == 11
    assert not (tmp_path / '.tmp-out').exists()


def test_a_run_that_cannot_end_leaves_no_folder_of_that_name(source: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsynth.datasets.conversion.convert import _Writer

    def full(self: _Writer, name: str, content: bytes) -> None:
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(_Writer, '_put', full)
    with pytest.raises(OSError, match='No space left'):
        convert(*found(source), tmp_path / 'out')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['source']


def test_one_process_writes_a_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / '.tmp-out').mkdir()
    with FolderLock(tmp_path / '.tmp-out'), pytest.raises(RuntimeError, match='is being written by process'):
        convert(*found(source), tmp_path / 'out')
    assert (tmp_path / '.tmp-out').exists() and not (tmp_path / 'out').exists()


def test_a_folder_that_is_there_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine.txt').write_text('x')
    with pytest.raises(FileExistsError, match='`out_dir`: .*out is there already'):
        convert(*found(source), tmp_path / 'out')
    assert listed(tmp_path / 'out') == ['mine.txt']


# ---- what is refused


@pytest.mark.parametrize('stride', [8, 3])
def test_unknown_labels_are_named_with_their_counts(source: Path, tmp_path: Path, stride: int) -> None:
    """Overlapping tiles do not count a pixel twice."""
    mask = read(source / 'masks/north_1.png')
    mask[3, 3:13], mask[19, 29] = 9, 77
    Image.fromarray(mask).save(source / 'masks/north_1.png')
    message = r'north_1.png holds labels .*: 9 in 10 pixels, 77 in 1 pixels\. Name them in the table'
    with pytest.raises(ValueError, match=message):
        convert(*found(source, tile_size=8, stride=stride), tmp_path / 'out')
    pairs, recipe = found(source, unknown_labels='ignore')
    part = convert(pairs, recipe, tmp_path / 'out').parts['train']
    assert part.unknown == 11 and (read(tmp_path / 'out/masks/north_1.png')[3, 3:13] == 255).all()


def test_all_problems_stand_in_one_message(source: Path, tmp_path: Path) -> None:
    write(source, 'north_1', pixels(20, 30), np.zeros((20, 31), np.uint8))
    write(source, 'south_1', pixels(21, 30), np.zeros((20, 30), np.uint8))
    with pytest.raises(ValueError, match='(?s)north_1.png is 31 x 20 pixels, its image .* is 30 x 20.*south_1.png'):
        convert(*found(source), tmp_path / 'out')


def test_images_without_masks(source: Path, tmp_path: Path) -> None:
    (source / 'masks/north_2.png').unlink()
    with pytest.raises(ValueError, match=r'1 image\(s\) have no mask: .*north_2.png'):
        found(source)
    assert [pair.name for pair in found(source, skip_unlabelled=True)[0]] == ['north_1', 'south_1', 'south_2']


def test_names_that_would_meet(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        write(tmp_path, name, pixels(4, 4), np.zeros((4, 4), np.uint8))
    pairs, recipe = own_folder(tmp_path, TABLE, title='t')
    with pytest.raises(ValueError, match='would both be called A'):
        convert([pairs[0], replace(pairs[1], name='A')], recipe, tmp_path / 'out')


def test_parts_that_share_a_place(source: Path, tmp_path: Path) -> None:
    pairs, recipe = found(source)
    with pytest.raises(ValueError, match=r'two parts share 1 place\(s\).*north'):
        convert([replace(pairs[0], part='val'), *pairs[1:]], recipe, tmp_path / 'out')


def test_a_damaged_image_is_named_by_a_dry_run(source: Path, tmp_path: Path) -> None:
    content = (source / 'images/south_1.png').read_bytes()
    (source / 'images/south_1.png').write_bytes(content[:len(content) // 2])
    with pytest.raises(ValueError, match='south_1.png cannot be read'):
        convert(*found(source), tmp_path / 'out', dry_run=True)


def test_nothing_labelled(source: Path, tmp_path: Path) -> None:
    pairs, recipe = found(source, min_labelled=1.0)
    with pytest.raises(ValueError, match='`min_labelled` than 1.0'):
        convert(pairs, recipe, tmp_path / 'out')
    with pytest.raises(ValueError, match='not a single image'):
        convert([], recipe, tmp_path / 'out')


@pytest.mark.parametrize('options, message', [
    (dict(min_labelled=1.5), '`min_labelled`'), (dict(bands=(1, 2)), '`bands`'), (dict(bands=(0, 1, 2)), '`bands`'),
    (dict(stride=4), '`stride`')])
def test_wrong_recipes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe('t', TABLE, **options)


def test_names_in_subfolders_and_one_folder_for_both(tmp_path: Path) -> None:
    for name in ('a/x', 'b/x'):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels(4, 4)).save(tmp_path / f'{name}.png')
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f'{name}_label.png')
    pairs, _ = own_folder(tmp_path, TABLE, title='t', images='.', masks='.', mask_suffix='_label')
    assert [(pair.name, Path(str(pair.image)).name, Path(str(pair.mask)).name) for pair in pairs] == [
        ('a_x', 'x.png', 'x_label.png'), ('b_x', 'x.png', 'x_label.png')]


# ---- with rasterio


def geotiff(path: Path, values: np.ndarray, left: float = 500000.0, crs: str = 'EPSG:32633', **options: object) -> None:
    import rasterio
    from rasterio.transform import from_origin
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, 'w', driver='GTiff', height=values.shape[0], width=values.shape[1], count=values.shape[2],
                       dtype=values.dtype, crs=crs, transform=from_origin(left, 4e6, 0.5, 0.5), **options) as opened:
        opened.write(values.transpose(2, 0, 1))


@GEO
def test_16_bit_geotiff_in_tiles(tmp_path: Path) -> None:
    """One stretch for the whole set; what has no data has no label."""
    for index, name in enumerate('ab'):
        values = RNG.integers(100 + 1000 * index, 1100 + 1000 * index, (20, 30, 4), dtype=np.uint16)
        values[:5] = 0
        geotiff(tmp_path / f's/images/{name}.tif', values, nodata=0)
        geotiff(tmp_path / f's/masks/{name}.tif', np.ones((20, 30, 1), np.uint8))
    pairs, recipe = own_folder(tmp_path / 's', TABLE, title='t', tile_size=10, bands=(3, 2, 1))
    part = convert(pairs, recipe, tmp_path / 'out').parts['train']
    assert part.pixels.tolist() == [0, 2 * 15 * 30, 0] and part.ignored == 2 * 5 * 30
    first, second = (read(tmp_path / f'out/images/{name}_y00010_x00000.png') for name in 'ab')
    assert first.max() < second.min() + 10, 'the darker image stays darker'
    meta = json.loads((tmp_path / 'out/meta.json').read_text())['settings']['stretch']
    low, high = np.array(meta['low']), np.array(meta['high'])
    assert (low > 100).all() and (low < 200).all() and (high > 2000).all() and (high < 2100).all()
    with raster.open_raster(SourceFile('a.tif', tmp_path / 's/images/a.tif')) as opened:
        raw = opened.read(raster.Window(10, 0, 10, 10), (3, 2, 1)).astype(float)
    np.testing.assert_allclose(first, (255 * (raw - low) / (high - low)).clip(0, 255), atol=0.51)


@GEO
@pytest.mark.parametrize('change, message', [
    (dict(left=500000.1), 'a.tif lies 0.2 pixels away'), (dict(crs='EPSG:32634'), 'different coordinate systems')])
def test_a_mask_that_lies_elsewhere(tmp_path: Path, change: dict, message: str) -> None:
    geotiff(tmp_path / 'images/a.tif', np.zeros((20, 30, 3), np.uint8))
    geotiff(tmp_path / 'masks/a.tif', np.zeros((20, 30, 1), np.uint8), **change)
    with pytest.raises(ValueError, match=message):
        convert(*own_folder(tmp_path, TABLE, title='t'), tmp_path / 'out', dry_run=True)


@GEO
def test_images_of_8_and_of_16_bits_need_a_word(tmp_path: Path) -> None:
    for name, dtype in (('a', np.uint8), ('b', np.uint16)):
        geotiff(tmp_path / f'images/{name}.tif', np.ones((8, 8, 3), dtype))
        geotiff(tmp_path / f'masks/{name}.tif', np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match='a.tif has 8 bits and .*b.tif has not; say by `stretch`'):
        convert(*own_folder(tmp_path, TABLE, title='t'), tmp_path / 'out', dry_run=True)
