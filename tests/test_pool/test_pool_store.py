"""The store: what is read is what was written, settings are held, and the message of each mistake."""
import json
import os
import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsynth.pool import Pool, file_name, read_records
from mmsynth.utils.files import atomic_write, encode_png

CLASSES = ('ground', 'house', 'water')
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
SETTINGS = {'generator': {'type': 'mmsynth.TODSynth', 'config_sha256': 'ab'}, 'num_steps': 23, 'run_seed': 0}
GENERATOR = {'type': 'mmsynth.TODSynth', 'config_sha256': 'ab', 'weights_sha256': 'cd'}


def pair(seed=0, size=(6, 9)):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 4, size, dtype=np.uint8)
    mask[mask == 3] = 255
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8), mask


def create(root, **changes):
    return Pool.create(root, {**SETTINGS, **changes}, CLASSES, PALETTE)


def add(pool, id, seed=0, **changes):
    image, mask = pair(seed)
    return pool.add(id, **{**{'image': image, 'mask': mask, 'source_mask': f'{id}.png', 'prompt': 'p', 'seed': seed,
                                  'generator': GENERATOR}, **changes})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(min_size=1), unique=True, min_size=2, max_size=4))
def test_file_names_are_safe_and_distinct(ids):
    names = [file_name(id) for id in ids]
    assert len({name.lower() for name in names}) == len(ids)
    assert all(re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_-]{0,79}', name) for name in names)


def test_file_name_is_readable_and_fixed():
    assert file_name('val/tile 3#1') == 'val-tile-3-1-3281ee2421f4'
    assert file_name('../..') == file_name('../..') != file_name('..')


def test_what_is_read_is_what_was_written(tmp_path):
    with create(tmp_path / 'pool') as pool:
        for seed in range(3):
            add(pool, f'tile/{seed}#ü', seed)
        written = pool.records
    opened = Pool.open(tmp_path / 'pool')
    assert opened.records == written == read_records(tmp_path / 'pool') and len(opened) == 3
    assert (opened.classes, opened.palette, opened.settings) == (CLASSES, PALETTE, SETTINGS)
    assert opened.has('tile/1#ü') and not opened.has('tile/1')
    for seed, record in enumerate(opened.records):
        image, mask = pair(seed)
        assert np.array_equal(opened.load_image(record), image) and np.array_equal(opened.load_mask(record), mask)


def test_masks_are_8_bit_class_indices(tmp_path):
    with create(tmp_path) as pool:
        record = add(pool, 'a')
    with Image.open(tmp_path / record.mask) as file:
        assert file.mode == 'L'


def test_a_plain_mmseg_dataset_reads_the_pool(tmp_path):
    from mmseg.datasets import BaseSegDataset
    with create(tmp_path) as pool:
        for id in 'ab':
            add(pool, id)
    dataset = BaseSegDataset(
        data_root=str(tmp_path), data_prefix={'img_path': 'img_dir', 'seg_map_path': 'ann_dir'}, img_suffix='.png',
        seg_map_suffix='.png', metainfo={'classes': CLASSES, 'palette': [list(color) for color in PALETTE]})
    assert {(os.path.basename(item['img_path']), os.path.basename(item['seg_map_path'])) for item in dataset} == {
        (f'{file_name(id)}.png',) * 2 for id in 'ab'}


def test_continues_where_it_was(tmp_path):
    with create(tmp_path) as pool:
        add(pool, 'a')
    with create(tmp_path) as pool:
        assert pool.has('a')
        add(pool, 'b')
    assert [record.id for record in read_records(tmp_path)] == ['a', 'b']


def test_remove_takes_line_and_files(tmp_path):
    with create(tmp_path) as pool:
        first, second = add(pool, 'a'), add(pool, 'b')
        with pytest.raises(ValueError, match="must be stored .* got 'c'"):
            pool.remove(['a', 'c'])
        pool.remove(['a', 'a'])
        assert not pool.has('a') and len(pool) == 1
        add(pool, 'a')
    assert [record.id for record in read_records(tmp_path)] == ['b', 'a']
    assert len(list((tmp_path / 'img_dir').iterdir())) == 2 and first.image != second.image


def test_each_differing_setting_is_named(tmp_path):
    create(tmp_path).close()
    with pytest.raises(ValueError) as error:
        Pool.create(tmp_path, {'generator': {'type': 'mmsynth.TISynth', 'config_sha256': 'ab'}, 'num_steps': 10,
                               'guidance': None}, CLASSES[:2], PALETTE[:2])
    message = str(error.value)
    for part in (str(tmp_path), "generator.type: 'mmsynth.TODSynth' there, 'mmsynth.TISynth' here",
                 'num_steps: 23 there, 10 here', 'run_seed: 0 there, (not set) here',
                 'guidance: (not set) there, None here', 'classes:', 'palette:', 'another --out-dir'):
        assert part in message
    assert 'config_sha256' not in message
    create(tmp_path).close()  # refusing left the lock free


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').write_text('x')
    with pytest.raises(ValueError, match="not a pool .* 'thesis.tex'.*another --out-dir"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
    with pytest.raises(ValueError, match='it is a file'):
        create(tmp_path / 'thesis.tex')
    with pytest.raises(ValueError, match='is not a pool'):
        Pool.open(tmp_path)
    with pytest.raises(ValueError, match='is not a pool'):
        read_records(tmp_path)


def test_one_writer_at_a_time(tmp_path):
    pool = create(tmp_path)
    with pytest.raises(RuntimeError, match=f'{re.escape(str(tmp_path))} is being written by process'):
        create(tmp_path)
    add(pool, 'a')
    assert len(Pool.open(tmp_path)) == 1  # readers are welcome
    pool.close()
    pool.close()
    create(tmp_path).close()
    with pytest.raises(RuntimeError, match='not open for writing'):
        add(pool, 'b')
    with pytest.raises(RuntimeError, match='not open for writing'):
        Pool.open(tmp_path).remove(['a'])


def test_readers_never_see_half_a_record(tmp_path):
    seen = []

    def read():
        while not done.is_set():
            reader = Pool.open(tmp_path)
            seen.extend(reader.load_mask(record).shape for record in reader.records[-2:])

    done = threading.Event()
    with create(tmp_path) as pool:
        thread = threading.Thread(target=read)
        thread.start()
        for number in range(30):
            add(pool, str(number))
        done.set()
        thread.join()
    assert set(seen) <= {(6, 9)}


@pytest.mark.parametrize('changes, message', [
    ({'mask': np.full((6, 9), 3, np.uint8)}, 'below 3, or 255 .*got 3'),
    ({'mask': np.zeros((6, 9), np.int64)}, r'`mask` must be \(H, W\) uint8, got \(6, 9\) int64'),
    ({'mask': np.zeros((6, 8), np.uint8)}, r'one size, not empty, got \(6, 9\) and \(6, 8\)'),
    ({'image': np.zeros((6, 9, 3), np.float32)}, r'`image` must be \(H, W, 3\) uint8'),
    ({'image': np.zeros((6, 9, 4), np.uint8)}, r'`image` must be \(H, W, 3\) uint8'),
])
def test_wrong_arrays_are_refused_with_the_id(tmp_path, changes, message):
    with create(tmp_path) as pool:
        with pytest.raises(ValueError, match=f"sample 'x/1'.*{message}"):
            add(pool, 'x/1', **changes)
        assert not list((tmp_path / 'img_dir').iterdir())


def test_a_wrong_record_or_a_second_one_writes_nothing(tmp_path):
    with create(tmp_path) as pool:
        with pytest.raises(ValueError, match='`prompt` .*`reference` '):
            add(pool, 'a', prompt=None, reference=3)
        assert not list((tmp_path / 'img_dir').iterdir())
        add(pool, 'a')
        with pytest.raises(ValueError, match="'a' is already in the pool"):
            add(pool, 'a')


def test_damaged_mask_is_named(tmp_path):
    with create(tmp_path) as pool:
        record = add(pool, 'a')
        atomic_write(tmp_path / record.mask, encode_png(np.full((6, 9), 7, np.uint8)))
        with pytest.raises(ValueError, match=f'{record.mask}.*got 7'):
            pool.load_mask(record)


@pytest.mark.parametrize('arguments, message', [
    (({'a': object()}, CLASSES, PALETTE), '`settings` must hold numbers'),
    (([1], CLASSES, PALETTE), '`settings` must be a dict'),
    (({}, 'abc', PALETTE), '`classes` must be a list of names'),
    (({}, (), ()), '1 to 255 names, got 0'),
    (({}, CLASSES, PALETTE[:2]), r'one colour per class \(3\), got 2'),
    (({}, CLASSES, ((0, 0, 256),) * 3), r'got \(0, 0, 256\) for class 0'),
])
def test_header_mistakes(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Pool.create(tmp_path / 'pool', *arguments)
    assert not (tmp_path / 'pool').exists()


@pytest.mark.parametrize('change', [{'format_version': 2}, {'more': 1}, {'classes': 3}])
def test_a_header_of_another_kind_names_its_file(tmp_path, change):
    create(tmp_path).close()
    path = tmp_path / 'pool.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for opening in (lambda: Pool.open(tmp_path), lambda: create(tmp_path)):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            opening()
