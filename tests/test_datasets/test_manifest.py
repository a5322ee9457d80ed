import json
import logging
from pathlib import Path

import mmengine
import numpy as np
import pytest
from PIL import Image

from mmsynth.datasets import DubaiDataset, FUSUDataset, GIDDataset, ManifestDataset
from mmsynth.registry import DATASETS

DATA = Path(__file__).resolve().parents[2].parent / 'shared' / 'data'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images with masks in folders, one of them nested, and a reference."""
    for name in ('b', 'a', 'deep/c'):
        write_png(tmp_path / 'images' / f'{name}.jpg', np.zeros((4, 6, 3), np.uint8))
        write_png(tmp_path / 'masks' / f'{name}.png', np.zeros((4, 6), np.uint8))
    write_png(tmp_path / 'ref' / 'r.jpg', np.zeros((4, 6, 3), np.uint8))
    return tmp_path


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_lines(root: Path, *lines: dict | str, name: str = 'index.jsonl') -> Path:
    path = root / name
    path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding='utf-8')
    return path


def manifest(root: Path, *lines: dict | str, **options: object) -> ManifestDataset:
    write_lines(root, *lines)
    return ManifestDataset(ann_file='index.jsonl', data_root=str(root), **options)


def folders(root: Path, **options: object) -> ManifestDataset:
    return ManifestDataset(
        data_root=str(root), **{'data_prefix': dict(img_path='images', seg_map_path='masks')} | options)


def infos(dataset: ManifestDataset) -> list[dict]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def test_a_line_becomes_a_data_info(root):
    line = dict(source='masks/a.png', target='images/a.jpg', prompt='roads', ref_image='ref/r.jpg', licence='CC0')
    info, = infos(manifest(root, line, metainfo=dict(classes=('land', 'road')), ignore_index=7))
    assert info == dict(
        img_path=f'{root}/images/a.jpg', seg_map_path=f'{root}/masks/a.png', reference_path=f'{root}/ref/r.jpg',
        prompt='roads', sample_id='masks/a', label_map=None, reduce_zero_label=False, seg_fields=[], ignore_index=7,
        classes=('land', 'road'), num_classes=2, sample_idx=0)


def test_masks_alone_are_enough_and_order_and_blank_lines_keep(root):
    write_lines(root, '\ufeff' + json.dumps(dict(source='masks/b.png')), '', '  ', dict(source='./masks/deep/../a.png'),
                dict(source='masks/deep/c.png', target=None), name='index.json')
    dataset = ManifestDataset(ann_file='index.json', data_root=str(root))
    assert [info['sample_id'] for info in infos(dataset)] == ['masks/b', 'masks/a', 'masks/deep/c']
    assert not any({'img_path', 'prompt', 'reference_path', 'classes', 'num_classes'} & info.keys()
                   for info in infos(dataset))


def test_a_mask_listed_again_gets_a_number(root):
    write_png(root / 'masks' / 'a#1.png', np.zeros((4, 6), np.uint8))
    lines = [dict(source=f'masks/{name}.png') for name in ('a', 'a', 'a#1', 'b', 'a')]
    ids = [info['sample_id'] for info in infos(manifest(root, *lines))]
    assert ids == ['masks/a', 'masks/a#1', 'masks/a#1#1', 'masks/b', 'masks/a#2']


def test_masks_only_leaves_images_out_even_missing_ones(root):
    line = dict(source='masks/a.png', target='images/none.jpg')
    assert 'img_path' not in infos(manifest(root, line, masks_only=True))[0]


def test_paths_start_at_the_manifest_without_a_data_root(root):
    path = write_lines(root, dict(source='masks/a.png'))
    info, = infos(ManifestDataset(ann_file=str(path)))
    assert info['seg_map_path'] == f'{root}/masks/a.png'
    assert info['sample_id'] == 'masks/a'


def test_folders_and_manifest_agree(root):
    names = ('a', 'b', 'deep/c')
    listed = infos(manifest(root, *(dict(source=f'masks/{n}.png', target=f'images/{n}.jpg') for n in names)))
    assert infos(folders(root)) == listed


def test_folders_with_names_masks_only_and_absolute_prefix(root):
    (root / 'train.txt').write_text('b\n\ndeep/c\n')
    assert [info['sample_id'] for info in infos(folders(root, ann_file='train.txt'))] == ['masks/b', 'masks/deep/c']
    alone = folders(root, data_prefix=dict(img_path=None, seg_map_path=str(root / 'masks')), masks_only=True)
    assert [info['sample_id'] for info in infos(alone)] == ['a', 'b', 'deep/c']
    assert not any('img_path' in info for info in infos(alone))


def test_indices_and_lazy_init_are_the_hosts(root):
    dataset = folders(root, indices=1, lazy_init=True)
    assert not dataset._fully_initialized
    assert len(infos(dataset)) == len(dataset) == 1


def test_subset_of_classes_counts_the_stored_ones(root):
    dataset = DubaiDataset(
        data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=('water', 'road')))
    info = dataset.get_data_info(0)
    assert info['label_map'] == {0: 255, 1: 255, 2: 1, 3: 255, 4: 0}
    assert (info['classes'], info['num_classes']) == (('water', 'road'), 5)


def test_meta_file_gives_classes_and_palette(root):
    (root / 'meta.json').write_text(json.dumps(dict(classes=['x', 'y'], palette=[[1, 2, 3], [4, 5, 6]], gsd_m=1)))
    dataset = folders(root, meta_file='meta.json', metainfo=dict(classes=('x', 'y')))
    assert dataset.metainfo['classes'] == ('x', 'y')
    assert dataset.metainfo['palette'] == [[1, 2, 3], [4, 5, 6]]
    assert folders(root, meta_file=str(root / 'meta.json')).get_data_info(0)['num_classes'] == 2


@pytest.mark.parametrize('dataset, count', [(FUSUDataset, 17), (GIDDataset, 24), (DubaiDataset, 5)])
def test_named_datasets_are_registered_with_a_colour_per_class(dataset, count):
    assert DATASETS.get(f'mmsynth.{dataset.__name__}') is dataset
    classes, palette = dataset.METAINFO['classes'], dataset.METAINFO['palette']
    assert len(set(classes)) == len(set(map(tuple, palette))) == count


@pytest.mark.parametrize('lines, message', [
    ([dict(source='masks/a.png'), '', '{"source": '], r'index\.jsonl: line 3: not JSON \(Expecting value'),
    (['["masks/a.png"]'], r'line 1: must be a JSON object, got \'\["masks/a\.png"\]\''),
    ([dict(mask='masks/a.png')], r"line 1: has no 'source' \(mask\); its keys: 'mask'"),
    ([dict(source=3)], r"line 1: 'source' must be a path, got 3"),
    ([dict(source='masks/a.png', target='')], r"'target' must be a path, got ''"),
    ([dict(source='masks/a.png', prompt=['road'])], r"'prompt' must be text"),
    ([dict(source='../a.png')], r"'source' leads out of the data root: '\.\./a\.png'"),
    ([dict(source='masks/a.png', ref_image='masks/../../r.jpg')], r"'ref_image' leads out of the data root"),
    ([dict(source='/etc/passwd')], r"'source' leads out"),
    ([dict(source='C:\\a.png')], r"'source' leads out"),
    ([dict(source='masks\\..\\..\\a.png')], r"'source' leads out"),
    ([dict(source='masks\\x/../../a.png')], r"'source' leads out"),
    ([dict(source='a\0.png')], r"'source' is no file name"),
    (['{', dict(target='x')], r"line 1: not JSON .*; line 2: has no 'source'"),
    (['{'] * 7, r'\(2 more\)\. Every line must be one JSON object'),
    ([dict(source='masks/a.png', target='images/a.jpg'), dict(source='masks/b.png')],
     r"index\.jsonl: line 2 without 'target' \(image\).*masks_only=True"),
])
def test_a_broken_manifest_names_file_line_and_reason(root, lines, message):
    with pytest.raises(ValueError, match=message):
        manifest(root, *lines)


def test_file_names_that_only_look_like_climbing_are_fine(root):
    write_png(root / '..masks' / '...a.png', np.zeros((4, 6), np.uint8))
    assert infos(manifest(root, dict(source='..masks/...a.png')))[0]['sample_id'] == '..masks/...a'


def test_missing_files_are_collected(root):
    lines = [dict(source=f'masks/{i}.png', target='images/a.jpg', ref_image='ref/none.jpg') for i in range(4)]
    with pytest.raises(FileNotFoundError, match=r'index\.jsonl: 8 file\(s\) missing: .*/masks/0\.png \(mask of '
                       r'line 1\), .*/ref/none\.jpg \(reference of line 1\), .*line 2.*… \(3 more\)'):
        manifest(root, *lines)


def test_an_image_without_mask_is_named(root):
    (root / 'masks' / 'b.png').unlink()
    with pytest.raises(FileNotFoundError, match=r"1 file\(s\) missing: .*/masks/b\.png \(mask of 'b'\)"):
        folders(root)


def test_masks_without_image_are_left_out_with_a_warning(root, monkeypatch):
    (root / 'images' / 'b.jpg').unlink()
    logged = []
    monkeypatch.setattr('mmsynth.datasets.manifest.print_log', lambda text, logger, level: logged.append((text, level)))
    assert len(folders(root)) == 2
    (text, level), = logged
    assert level == logging.WARNING
    assert text.startswith(f'1 masks in {root}/masks have no image') and text.endswith(': b')


@pytest.mark.parametrize('options, message', [
    (dict(img_suffix='.tif'), r"images has no file that ends in '\.tif' \(`img_suffix`\); files there: 3 of \.jpg"),
    (dict(seg_map_suffix='.tif', masks_only=True), r"masks has no file that ends in '\.tif' \(`seg_map_suffix`\)"),
    (dict(data_prefix=dict(img_path='imgs', seg_map_path='masks')), r'`data_prefix\.img_path`: there is no folder'),
    (dict(data_prefix=dict(img_path='images', seg_map_path='ann')), r'`data_prefix\.seg_map_path`: there is no folder'),
    (dict(ann_file='none.txt'), r'none\.txt does not exist'),
    (dict(ann_file='none.jsonl', data_prefix=None), r'none\.jsonl does not exist'),
    (dict(ann_file='empty.txt'), r'empty\.txt lists no names'),
    (dict(ann_file='empty.jsonl', data_prefix=None), r'empty\.jsonl has no records'),
])
def test_what_is_not_there_is_named(root, options, message):
    for name in ('empty.txt', 'empty.jsonl'):
        (root / name).write_text('\n')
    with pytest.raises(FileNotFoundError, match=message):
        folders(root, **options)


@pytest.mark.parametrize('options, message', [
    (dict(ann_file='index.jsonl', data_prefix=dict(img_path='images')), r'`data_prefix` .*no effect with the manifest'),
    (dict(ann_file='index.csv'), r'`ann_file` must end in \.jsonl or \.json .*got \'index\.csv\''),
    (dict(data_prefix=dict(image='images')), r'`data_prefix` has the keys img_path and seg_map_path, got image'),
    (dict(data_root=None), r'data_prefix.seg_map_path'),
])
def test_contradicting_options_are_refused(root, options, message):
    with pytest.raises(ValueError, match=message):
        ManifestDataset(**dict(data_root=str(root)) | options)


def test_a_misspelt_option_fails_with_its_name(root):
    with pytest.raises(TypeError, match='mask_only'):
        DATASETS.build(dict(type='mmsynth.ManifestDataset', data_root=str(root), mask_only=True))


@pytest.mark.parametrize('meta, message', [
    ('{', 'is not JSON'),
    ([1], "must be an object with 'classes'"),
    (dict(classes=[]), "must be an object with 'classes'"),
    (dict(classes=['x', 'x']), 'names a class twice'),
    (dict(classes=['x'], palette=[[0, 0, 256]]), "'palette' must have one"),
    (dict(classes=['x'], palette=[]), "'palette' must have one"),
    (dict(classes=['x']), r"and `metainfo` disagree about classes: \['x'\] and \['z'\]"),
])
def test_a_wrong_meta_file_is_refused(root, meta, message):
    (root / 'meta.json').write_text(meta if isinstance(meta, str) else json.dumps(meta))
    with pytest.raises(ValueError, match=message):
        folders(root, meta_file='meta.json', metainfo=dict(classes=('z', )))


def test_a_meta_file_may_not_contradict_the_class(root):
    (root / 'meta.json').write_text(json.dumps(dict(classes=['x'])))
    with pytest.raises(ValueError, match="the class's METAINFO disagree about classes"):
        DubaiDataset(data_root=str(root), meta_file='meta.json')


def test_text_that_is_not_utf8_is_refused(root):
    (root / 'index.jsonl').write_bytes(b'{"source": "\xff"}')
    with pytest.raises(ValueError, match='index.jsonl is not UTF-8 text'):
        ManifestDataset(ann_file='index.jsonl', data_root=str(root))


@pytest.mark.skipif(not DATA.is_dir(), reason=f'needs the real data in {DATA}')
@pytest.mark.parametrize('dataset, folder', [(FUSUDataset, 'fusu_crfm_demo'), (GIDDataset, 'gid24_tisynth_demo'),
                                             (DubaiDataset, 'dubai_mbrsc'), (ManifestDataset, 'loveda_mmseg')])
def test_the_real_sets_load(dataset, folder):
    loaded = dataset(ann_file='index.jsonl', data_root=str(DATA / folder), meta_file='meta.json')
    meta = mmengine.load(str(DATA / folder / 'meta.json'))
    assert len(loaded) == meta['n_images']
    assert list(loaded.metainfo['classes']) == meta['classes']
    assert {'img_path', 'prompt'} <= loaded.get_data_info(0).keys()
    assert ('reference_path' in loaded.get_data_info(0)) == (folder == 'gid24_tisynth_demo')


@pytest.mark.parametrize('data_root', [3, float('nan'), ['data']])
def test_a_data_root_that_is_no_path(data_root):
    with pytest.raises(TypeError, match='`data_root` must be a path, got '):
        ManifestDataset(ann_file='index.jsonl', data_root=data_root)
