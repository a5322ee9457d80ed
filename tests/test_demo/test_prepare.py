"""Writing the demo's folder: what goes where, what is reused, and what each mistake is told."""
import json

import numpy as np
import pytest
from PIL import Image

from projects.demo import prepare, published
from projects.demo.prepare import split_folder, write_landcover

SMALL = dict(num_labelled=2, num_val=1, num_judge=2, num_target=3, num_synthesis=5, size=32, tile_size=16)


def read(file):
    return np.array(Image.open(file))


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob('*')) if file.is_file()}


def stems(folder):
    return sorted(file.stem for file in folder.iterdir())


def write_data(folder, count=6, side=64, num_classes=3, stem='tile{}_part'):
    rng = np.random.default_rng(0)
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        name = stem.format(index)
        mask = np.kron(rng.integers(0, num_classes, (side // 4, side // 4)), np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(mask).save(folder / f'masks/{name}.png')
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f'images/{name}.png')
    about = {'name': 'toy', 'classes': [f'c{index}' for index in range(num_classes)]}
    (folder / 'meta.json').write_text(json.dumps(about))
    return folder


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / 'data')


def split(data, out, **options):
    return split_folder(data, out, **dict(downscale=2, tile_size=8, num_synthesis=20, val_pattern='tile2_*') | options)


# ---------------------------------------------------------------------------------------------------------- land cover
def test_landcover_has_the_layout_and_the_counts(tmp_path):
    out = tmp_path / 'deep/set'
    meta = write_landcover(out, **SMALL)
    assert meta == json.loads((out / 'meta.json').read_text())
    assert meta['counts'] == {'train': 2, 'val': 1, 'judge': 2, 'target_val': 1, 'target_judge': 2, 'synthesis': 5}
    assert meta['name'] == 'landcover' and meta['seed'] == 0 and len(meta['classes']) == len(meta['palette']) == 6
    for part in ('train', 'val', 'judge', 'target_val', 'target_judge'):
        assert stems(out / 'img_dir' / part) == stems(out / 'ann_dir' / part)
        assert all(read(file).shape == (32, 32, 3) for file in (out / 'img_dir' / part).iterdir())
    assert len(stems(out / 'img_dir/target')) == 3 and not (out / 'ann_dir/target').exists(), 'it has no labels'
    sources = [json.loads(line)['source'] for line in (out / 'synthesis.jsonl').read_text().splitlines()]
    assert len(set(sources)) == 5
    for tile in (read(out / source) for source in sources):
        assert tile.shape == (16, 16) and tile.dtype == np.uint8 and len(np.unique(tile)) >= 2


def test_landcover_parts_share_no_scene_and_the_seed_decides(tmp_path):
    write_landcover(tmp_path / 'a', **SMALL)
    write_landcover(tmp_path / 'b', **SMALL)
    write_landcover(tmp_path / 'c', **SMALL, seed=1)
    first, again, other = (files(tmp_path / name) for name in 'abc')
    assert first == again
    images = [content for name, content in {**first, **{'c' + k: v for k, v in other.items()}}.items()
              if 'img_dir' in name]
    assert len(images) == len(set(images)) == 22


def test_more_scenes_leave_the_first_ones_as_they_are(tmp_path):
    write_landcover(tmp_path / 'a', **SMALL)
    write_landcover(tmp_path / 'b', **{**SMALL, 'num_labelled': 3})
    few, more = files(tmp_path / 'a'), files(tmp_path / 'b')
    assert all(more[name] == content for name, content in few.items() if name != 'meta.json')


def test_landcover_names_wrong_numbers_at_once(tmp_path):
    with pytest.raises(ValueError, match='(?s)`num_val`.* got 0.*`tile_size`.* got 48'):
        write_landcover(tmp_path / 'out', num_val=0, size=32, tile_size=48)
    with pytest.raises(ValueError, match='tiles show two classes; raise `tile_size`'):
        list(prepare._drawn_tiles(1, 16, 17, 0))


# --------------------------------------------------------------------------------------------------- reuse and refusal
def test_the_same_settings_reuse_and_others_rewrite(tmp_path):
    out = tmp_path / 'set'
    meta = write_landcover(out, **SMALL)
    written = (out / 'img_dir/train/0000.png').stat().st_mtime_ns
    assert write_landcover(out, **SMALL) == meta
    assert (out / 'img_dir/train/0000.png').stat().st_mtime_ns == written
    assert write_landcover(out, **SMALL, seed=5) != meta
    assert (out / 'img_dir/train/0000.png').stat().st_mtime_ns != written
    assert stems(tmp_path) == ['set']


def test_a_changed_source_is_noticed(data, tmp_path):
    out = tmp_path / 'out'
    meta = split(data, out)
    assert split(data, out) == meta
    Image.new('RGB', (64, 64)).save(data / 'images/tile3_part.png')
    assert split(data, out)['settings'] != meta['settings']


def test_a_folder_of_the_user_is_never_deleted(data, tmp_path):
    for name in ('set', 'other.tmp', 'third.old'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'thesis.txt').write_text('mine')
    for name in ('set', 'other', 'third'):
        with pytest.raises(ValueError, match='exists .*`out`'):
            write_landcover(tmp_path / name, **SMALL)
    with pytest.raises(ValueError, match='was not written by this tool'):
        split(data, data)
    assert len(list(tmp_path.rglob('thesis.txt'))) == 3 and (data / 'images').is_dir()


def test_what_was_added_to_our_folder_is_not_deleted(tmp_path):
    out = tmp_path / 'set'
    write_landcover(out, **SMALL)
    (out / 'work_dirs').mkdir()
    write_landcover(out, **SMALL)  # reuse touches nothing
    with pytest.raises(ValueError, match='other settings and also holds work_dirs'):
        write_landcover(out, **SMALL, seed=1)
    assert (out / 'work_dirs').is_dir() and (out / 'img_dir/train/0000.png').is_file()


def test_a_failed_run_leaves_the_earlier_folder_and_no_rest(tmp_path, monkeypatch):
    out = tmp_path / 'set'
    write_landcover(out, **SMALL)
    before = files(out)
    monkeypatch.setattr(prepare, 'draw_mask', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_landcover(out, **SMALL, seed=1)
    assert files(out) == before and stems(tmp_path) == ['set']


def test_the_rest_of_a_killed_run_is_cleared_away(tmp_path):
    rest = tmp_path / 'set.tmp'
    (rest / 'img_dir/train').mkdir(parents=True)
    published._write_meta(rest, {'written_by': published._WRITTEN_BY, 'settings': None})
    (tmp_path / 'set').mkdir()  # empty: nothing to lose
    write_landcover(tmp_path / 'set', **SMALL)
    assert stems(tmp_path) == ['set']


# ------------------------------------------------------------------------------------------------------------- split
def test_split_puts_every_image_where_it_belongs(data, tmp_path):
    out = tmp_path / 'out'
    meta = split(data, out)
    train, val, judge = (stems(out / 'img_dir' / part) for part in ('train', 'val', 'judge'))
    assert val == ['tile2_part']
    assert judge == [f'tile{index}_part' for index in (0, 1, 3, 4, 5)]
    assert len(train) == 3 and set(train) < set(judge)
    assert meta['counts'] == {'train': 3, 'val': 1, 'judge': 5, 'synthesis': 20}
    assert meta['name'] == 'toy' and len(meta['palette']) == 3
    for part, names in (('train', train), ('val', val), ('judge', judge)):
        assert stems(out / 'ann_dir' / part) == names


def test_large_training_images_are_cut_into_overlapping_pieces(data, tmp_path):
    out = tmp_path / 'out'
    split(data, out, piece_size=20)  # the images are 32 x 32 after shrinking
    whole, pieces = tmp_path / 'whole', {path.stem: path for path in (out / 'img_dir/judge').glob('tile0_*.png')}
    split(data, whole)
    image = read(whole / 'img_dir/judge/tile0_part.png')
    assert sorted(pieces) == sorted(f'tile0_part_y{top}_x{left}' for top in (0, 10, 12) for left in (0, 10, 12))
    np.testing.assert_array_equal(read(pieces['tile0_part_y10_x12']), image[10:30, 12:32])
    assert stems(out / 'img_dir/val') == ['tile2_part']


def test_split_shrinks_by_area_and_by_vote(data, tmp_path):
    out = tmp_path / 'out'
    image, mask = read(data / 'images/tile2_part.png'), read(data / 'masks/tile2_part.png')
    Image.fromarray(image[:63, :62]).save(data / 'images/tile2_part.png')  # rows beyond a whole block are dropped
    Image.fromarray(mask[:63, :62]).save(data / 'masks/tile2_part.png')
    split(data, out)
    mean = image[:62, :62].reshape(31, 2, 31, 2, 3).mean(axis=(1, 3))
    assert np.abs(read(out / 'img_dir/val/tile2_part.png') - mean).max() <= 0.5  # rounding
    np.testing.assert_array_equal(read(out / 'ann_dir/val/tile2_part.png'), mask[:62:2, :62:2])


def test_tiles_are_distinct_orientations_of_masks_held_back(data, tmp_path):
    out = tmp_path / 'out'
    split(data, out, num_synthesis=1000, seed=3)
    held_back = set(stems(out / 'ann_dir/judge')) - set(stems(out / 'ann_dir/train'))
    names = stems(out / 'ann_dir/synthesis')
    assert len(names) == len(set(names)) <= len(held_back) * 16 * 8
    for name in names:
        stem, top, left, variant = name.rsplit('_', 3)
        assert stem in held_back
        tile = read(out / f'ann_dir/judge/{stem}.png')[int(top[1:]):int(top[1:]) + 8, int(left[1:]):int(left[1:]) + 8]
        turned = np.rot90(tile, int(variant[1:]) % 4)
        expected = turned[:, ::-1] if int(variant[1:]) > 3 else turned
        np.testing.assert_array_equal(read(out / f'ann_dir/synthesis/{name}.png'), expected)


def test_split_does_not_depend_on_the_call_but_on_the_seed(data, tmp_path):
    split(data, tmp_path / 'a')
    split(data, tmp_path / 'b')
    split(data, tmp_path / 'c', seed=7)
    assert files(tmp_path / 'a') == files(tmp_path / 'b') != files(tmp_path / 'c')


def test_without_a_pattern_a_sixth_is_for_validation(tmp_path):
    data = write_data(tmp_path / 'data', count=12, stem='x{}')
    meta = split(data, tmp_path / 'out', labelled_fraction=0.01, val_pattern=None)
    assert meta['counts']['val'] == 2 and meta['counts']['train'] == 1 and meta['counts']['judge'] == 10
    meta = split(data, tmp_path / 'out', labelled_fraction=0.99, val_pattern=None)
    assert meta['counts']['train'] == 9, 'one is always held back'


# ------------------------------------------------------------------------------------------------- mistakes in a folder
def test_a_pattern_without_an_image_is_refused(data, tmp_path):
    refused(data, tmp_path, '`val_pattern`', val_pattern='x*')


def refused(data, tmp_path, message, **options):
    with pytest.raises(ValueError, match=f'(?s){message}'):
        split(data, tmp_path / 'out', **options)
    assert not list(tmp_path.glob('out*'))


def test_missing_parts_are_listed_together(tmp_path):
    (tmp_path / 'data').mkdir()
    refused(tmp_path / 'data', tmp_path, 'images/ is missing.*masks/ is missing.*meta.json is missing')


@pytest.mark.parametrize(('text', 'message'), [
    ('{"name": "x"}', '"classes" must list the names of 2 to 255 classes.*got None'),
    ('[1]', '"classes" must list'),
    ('{"classes": ["a", "b", "c"], "palette": [[0, 0, 0]]}', r'"palette" must hold.*3 classes.*\(1, 3\)'),
    ('{classes}', 'meta.json is not valid JSON'),
])
def test_a_wrong_meta_is_named(data, tmp_path, text, message):
    (data / 'meta.json').write_text(text)
    refused(data, tmp_path, message)


def test_an_image_without_a_mask_and_two_of_one_name(data, tmp_path):
    (data / 'masks/tile1_part.png').unlink()
    Image.new('RGB', (64, 64)).save(data / 'images/tile4_part.jpg')
    refused(data, tmp_path, 'images/tile1_part.png: no mask .*tile1_part.png.*2 images are called tile4_part')


def test_broken_files_are_listed_together_with_name_and_value(data, tmp_path):
    wrong = read(data / 'masks/tile0_part.png').astype(np.uint16)
    wrong[5, 5] = 300
    Image.fromarray(wrong).save(data / 'masks/tile0_part.png')
    Image.new('L', (60, 64)).save(data / 'masks/tile1_part.png')
    (data / 'images/tile2_part.png').write_bytes(b'not an image')
    (data / 'masks/tile3_part.png').write_bytes((data / 'masks/tile3_part.png').read_bytes()[:60])
    Image.new('RGB', (64, 64)).save(data / 'masks/tile4_part.png')
    (data / 'images/tile5_part.png').write_bytes(b'')
    refused(data, tmp_path, 'masks/tile0_part.png: labels must be class ids below 3, or 255.*got 300.*'
            'masks/tile1_part.png is 60 x 64 pixels, its image tile1_part.png is 64 x 64.*'
            'images/tile2_part.png cannot be read as an image.*'
            'masks/tile3_part.png cannot be read as a mask.*'
            'masks/tile4_part.png must hold one class index per pixel.*'
            'images/tile5_part.png cannot be read as an image')


def test_labels_that_count_from_one_are_said_so(data, tmp_path):
    Image.fromarray(np.full((64, 64), 3, np.uint8)).save(data / 'masks/tile0_part.png')
    refused(data, tmp_path, 'masks/tile0_part.png: labels .*if its ids are 1 … 3, subtract 1')


@pytest.mark.parametrize('count', [1, 2])
def test_too_few_images(tmp_path, count):
    data = write_data(tmp_path / 'data', count=count)
    refused(data, tmp_path, rf'has {count} labelled image\(s\); at least 3 are needed')


def test_a_pattern_that_takes_all(data, tmp_path):
    refused(data, tmp_path, r"`val_pattern` = 'tile\*' takes 6 of the 6 images", val_pattern='tile*')


def test_small_images_matter_only_when_no_tile_is_left(data, tmp_path):
    for folder in ('images', 'masks'):
        Image.open(data / folder / 'tile0_part.png').crop((0, 0, 8, 8)).save(data / folder / 'tile0_part.png')
    assert split(data, tmp_path / 'fine')['counts']['judge'] == 5
    refused(data, tmp_path, 'no tile for synthesis: .*`tile_size` = 48 pixels', tile_size=48)
    refused(data, tmp_path, 'tile0_part.png is 8 x 8 pixels, too small for `downscale` = 16', downscale=16)


def test_wrong_options_are_named_together(data, tmp_path):
    refused(data, tmp_path, '`downscale` must be at least 1, got 0.*`tile_size` must be at least 2, got 1.*'
            '`num_synthesis` must be at least 1, got 0.*`labelled_fraction` must lie between 0 and 1, got 1',
            downscale=0, tile_size=1, num_synthesis=0, labelled_fraction=1)
