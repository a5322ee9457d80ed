import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mmsynth.datasets.transforms import LoadReference, LoadSegMap
from mmsynth.utils.labels import read_label

DATA = Path(__file__).resolve().parents[2].parent / 'shared' / 'data'
LABEL = np.array([[0, 1, 2], [3, 4, 255]])


@pytest.fixture
def label_path(tmp_path: Path) -> str:
    return save(tmp_path, LABEL, np.uint8)


def save(folder: Path, array: np.ndarray, dtype: type, name: str = 'label.png') -> str:
    Image.fromarray(array.astype(dtype)).save(folder / name)
    return str(folder / name)


def load(path: str, info: dict | None = None, **options: object) -> dict:
    return LoadSegMap(**options)(dict(seg_map_path=path, seg_fields=[], **(info or {})))


def four_bit_png(values: list[list[int]]) -> bytes:
    """A grey PNG of 4 bits (width even), which Pillow reads but does not write."""
    rows = b''.join(b'\0' + bytes(a << 4 | b for a, b in zip(row[::2], row[1::2])) for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', len(values[0]), len(values), 4, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def test_class_ids_and_shapes_come_out(label_path):
    results = load(label_path, dict(num_classes=5))
    np.testing.assert_array_equal(results['gt_seg_map'], LABEL)
    assert results['gt_seg_map'].dtype == np.uint8
    assert results['seg_fields'] == ['gt_seg_map']
    assert results['img_shape'] == results['ori_shape'] == (2, 3)


@pytest.mark.parametrize('info', [
    dict(),
    dict(reduce_zero_label=True),
    dict(label_map={0: 1, 1: 255, 2: 0, 3: 255, 4: 2}),
    dict(reduce_zero_label=True, label_map={0: 3, 1: 255, 2: 0, 3: 1, 4: 2}),
], ids=str)
def test_eight_bits_read_as_in_mmseg(label_path, info):
    info = dict(reduce_zero_label=False, label_map=None) | info
    host = LoadAnnotations()(dict(seg_map_path=label_path, seg_fields=[], **info))
    np.testing.assert_array_equal(load(label_path, info, num_classes=5)['gt_seg_map'], host['gt_seg_map'])


def test_sixteen_bits_are_not_cut(tmp_path):
    path = save(tmp_path, np.array([[2, 258], [65535, 255]]), np.uint16)
    np.testing.assert_array_equal(read_label(path), [[2, 258], [65535, 255]])
    with pytest.raises(ValueError, match=r'label\.png holds 258, 65535 in 2 pixels'):
        load(path, num_classes=5)


def test_only_the_ignore_index_is_ignored_and_becomes_255(tmp_path):
    path = save(tmp_path, np.array([[0, 65535]]), np.uint16)
    np.testing.assert_array_equal(load(path, dict(num_classes=5, ignore_index=65535))['gt_seg_map'], [[0, 255]])
    path = save(tmp_path, np.array([[0, 65535, 255]]), np.uint16)
    with pytest.raises(ValueError, match='holds 255 in 1 pixels.*unlabelled is 65535'):
        load(path, num_classes=5, ignore_index=65535)


def test_a_dropped_class_of_older_hosts_is_ignored(label_path):
    assert load(label_path, dict(label_map={1: -1}), num_classes=5)['gt_seg_map'][0, 1] == 255


def test_palette_images_give_indices_of_any_depth(tmp_path):
    for bits in (1, 2, 4, 8):
        image = Image.frombytes('P', (4, 1), bytes([0, 1, 1, 0]))
        image.putpalette([200, 0, 0, 0, 200, 0])
        image.save(tmp_path / 'palette.png', bits=bits)
        np.testing.assert_array_equal(read_label(str(tmp_path / 'palette.png')), [[0, 1, 1, 0]])


def test_grey_of_few_bits_is_not_stretched(tmp_path):
    (tmp_path / 'four.png').write_bytes(four_bit_png([[0, 1, 2, 15], [3, 4, 5, 6]]))
    np.testing.assert_array_equal(read_label(str(tmp_path / 'four.png')), [[0, 1, 2, 15], [3, 4, 5, 6]])
    path = save(tmp_path, np.array([[False, True]]), bool)
    np.testing.assert_array_equal(read_label(path), [[0, 1]])


@pytest.mark.skipif(not DATA.is_dir(), reason=f'needs the real data in {DATA}')
def test_the_published_sixteen_bit_label_equals_the_converted_one():
    folder = DATA / 'gid24_tisynth_demo'
    meta = json.loads((folder / 'meta.json').read_text())
    line = json.loads((folder / 'index.jsonl').read_text().splitlines()[0])
    published = load(str(folder / 'raw' / 'label_16bit.png'), num_classes=24)['gt_seg_map']
    np.testing.assert_array_equal(published, load(str(folder / line['source']), num_classes=24)['gt_seg_map'])
    counts = np.bincount(published.ravel(), minlength=256)
    assert [*counts[:24], counts[255]] == list(meta['pixels_per_class'].values())


@pytest.mark.parametrize('info, options, message', [
    (dict(), dict(num_classes=3), r'label\.png holds 3, 4 in 2 pixels, but its 3 classes are 0 … 2 and unlabelled is '
                                  r'255.*start at 1, `reduce_zero_label=True`'),
    (dict(reduce_zero_label=True), dict(num_classes=3), r'holds 4 in 1 pixels, .*3 classes are 1 … 3 and unlabelled is '
                                                        r'0 or 255.*`reduce_zero_label=False`'),
    (dict(), dict(), r'label\.png: the class count is unknown; set `num_classes`'),
    (dict(num_classes=5), dict(num_classes=6), r'`num_classes` of LoadSegMap is 6, the dataset has 5'),
    (dict(ignore_index=0), dict(ignore_index=255, num_classes=5), r'`ignore_index` of LoadSegMap is 255, the dataset'),
    (dict(ignore_index=0), dict(num_classes=5), r'`ignore_index` 0 is a class \(the files hold 0 … 4\)'),
    (dict(num_classes=256), dict(), r'`num_classes` must be in 1 … 255, got 256'),
])
def test_labels_and_settings_that_do_not_fit_are_refused(label_path, info, options, message):
    with pytest.raises(ValueError, match=message):
        load(label_path, info, **options)


def test_many_wrong_values_are_cut_short(tmp_path):
    path = save(tmp_path, np.arange(20).reshape(4, 5), np.uint8)
    with pytest.raises(ValueError, match=r'holds 2, 3, 4, 5, 6, 7, 8, 9, … \(10 more\) in 18 pixels'):
        load(path, num_classes=2)


def test_num_classes_is_checked_at_once():
    with pytest.raises(ValueError, match=r'`num_classes` must be in 1 … 255, got 0'):
        LoadSegMap(num_classes=0)


@pytest.mark.parametrize('shape', [(2, 3, 3), (2, 3, 4)])
def test_colour_labels_are_refused(tmp_path, shape):
    path = save(tmp_path, np.zeros(shape), np.uint8)
    with pytest.raises(ValueError, match=rf'label\.png .*mode RGBA? of {shape[2]} band'):
        load(path, num_classes=5)


def test_unreadable_and_missing_labels_are_named(tmp_path, label_path):
    with pytest.raises(FileNotFoundError, match=r'label .*none\.png does not exist'):
        load(str(tmp_path / 'none.png'), num_classes=5)
    for content in (b'no image', Path(label_path).read_bytes()[:45]):
        (tmp_path / 'broken.png').write_bytes(content)
        with pytest.raises(ValueError, match=r'label .*broken\.png cannot be read'):
            load(str(tmp_path / 'broken.png'), num_classes=5)


def test_image_and_label_must_have_one_size(label_path):
    info = dict(img=np.zeros((3, 2, 3), np.uint8), img_path='photo.jpg')
    with pytest.raises(ValueError, match=r'image photo\.jpg is 3 x 2 .*label\.png is 2 x 3'):
        load(label_path, info, num_classes=5)


def test_a_label_loaded_after_resize_is_compared_with_the_size_as_loaded(label_path):
    info = dict(img=np.zeros((8, 12, 3), np.uint8), img_shape=(8, 12), ori_shape=(2, 3))
    results = load(label_path, info, num_classes=5)
    assert (results['img_shape'], results['ori_shape']) == ((8, 12), (2, 3))


def test_a_reference_is_bgr(tmp_path):
    path = save(tmp_path, np.full((2, 3, 3), (250, 20, 10)), np.uint8, 'ref.png')
    reference = LoadReference()(dict(reference_path=path))['reference']
    assert reference.dtype == np.uint8
    np.testing.assert_array_equal(reference, np.full((2, 3, 3), (10, 20, 250)))


def test_a_reference_may_be_optional():
    assert LoadReference(required=False)(dict(sample_id='a')) == dict(sample_id='a')
    with pytest.raises(ValueError, match="a has no reference image; give it 'ref_image'"):
        LoadReference()(dict(sample_id='a'))


@pytest.mark.parametrize('array, found', [
    (np.zeros((2, 3), np.uint8), r'1 band \(grey\) of uint8'),
    (np.zeros((2, 3, 4), np.uint8), '4 bands of uint8'),
    (np.zeros((2, 3, 3), np.uint16), '3 bands of uint16'),
    (None, 'a file that is no image'),
])
def test_other_references_are_refused(tmp_path, array, found):
    path = tmp_path / 'ref.png'
    path.write_bytes(b'no image' if array is None else cv2.imencode('.png', array)[1].tobytes())
    with pytest.raises(ValueError, match=rf'ref\.png .* found {found}'):
        LoadReference()(dict(reference_path=str(path)))


def test_a_missing_reference_is_named_though_optional(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'reference .*none\.png does not exist'):
        LoadReference(required=False)(dict(reference_path=str(tmp_path / 'none.png')))
