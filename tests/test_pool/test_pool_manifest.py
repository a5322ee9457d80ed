"""The manifest's schema: round trip, strictness, the message of each mistake."""
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsynth.pool import PoolRecord, read_records

GENERATOR = {'type': 'mmsynth.TODSynth', 'config_sha256': 'ab' * 32, 'weights_sha256': None}
VALUES = {
    'id': 'val/1#0', 'image': 'img_dir/a.png', 'mask': 'ann_dir/a.png', 'source_mask': 'masks/1.png',
    'prompt': 'a field',
    'reference': None, 'seed': 7, 'generator': GENERATOR, 'guidance': None, 'filter': None,
    'mask_origin': None}


def record(**changes):
    return PoolRecord(**{**VALUES, **changes})


def line(**changes):
    return json.dumps({**VALUES, **changes})


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                           max_leaves=8)
steps = st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.floats(), max_size=4)


@settings(max_examples=60, deadline=None)
@given(id=st.text(min_size=1), prompt=st.text(), reference=st.none() | st.text(), seed=st.integers(0, 2**63 - 1),
       trace=st.lists(steps, max_size=3), filter=st.none() | st.dictionaries(st.text(), json_values, max_size=3))
def test_round_trip_is_exact(id, prompt, reference, seed, trace, filter):
    first = record(id=id, prompt=prompt, reference=reference, seed=seed, guidance={'name': 'g', 'trace': trace},
                   filter=filter)
    text = first.to_json()
    assert '\n' not in text and text.isascii()
    assert 'NaN' not in json.dumps(json.loads(text)['guidance']) or any('NaN' in key for step in trace for key in step)
    assert PoolRecord.from_json(text) == first


def test_numbers_json_does_not_have_become_null():
    trace = [{'step': 0, 'loss_before': float('nan'), 'loss_after': float('inf')}]
    text = record(guidance={'name': 'CRFM', 'trace': trace}).to_json()
    assert json.loads(text)['guidance']['trace'] == [{'step': 0, 'loss_before': None, 'loss_after': None}]
    assert np.isnan(trace[0]['loss_before'])  # the argument is left alone


def test_numpy_scalars_become_numbers():
    stored = record(seed=np.int64(3), guidance={'name': 'CRFM', 'trace': [{'loss': np.float32(0.5)}]},
                    filter={'kept': np.bool_(True)})
    values = json.loads(stored.to_json())
    assert (values['seed'], values['guidance']['trace'], values['filter']) == (3, [{'loss': 0.5}], {'kept': True})


def test_parse_ignores_a_line_still_being_written(tmp_path):
    path = tmp_path / 'manifest.jsonl'
    whole = f'{line()}\n{line(id="other")}'
    path.write_text(whole[:-1])
    assert [entry.id for entry in read_records(tmp_path)] == ['val/1#0']
    path.write_text(whole)  # all but its line break, as an editor may leave it
    assert [entry.id for entry in read_records(tmp_path)] == ['val/1#0', 'other']


@pytest.mark.parametrize('changes, message', [
    ({'id': ''}, '`id` must not be empty'),
    ({'id': 3}, '`id` must be a string, got 3'),
    ({'seed': True}, '`seed` must be an integer'),
    ({'seed': 1.5}, '`seed` must be an integer'),
    ({'seed': -1}, 'not negative, got -1'),
    ({'image': '../a.png'}, '`image` must be img_dir/NAME.png inside the pool'),
    ({'image': 'img_dir/../a.png'}, '`image` must be'),
    ({'image': 'img_dir/..png'}, '`image` must be'),
    ({'image': '/img_dir/a.png'}, '`image` must be'),
    ({'image': 'img_dir/a.png\n'}, '`image` must be'),
    ({'mask': 'img_dir/a.png'}, '`mask` must be ann_dir/NAME.png'),
    ({'mask': 'ann_dir/b.png'}, 'must have the same file name'),
    ({'reference': 1}, '`reference` must be a string'),
    ({'generator': None}, '`generator` must be an object'),
    ({'generator': {'type': 'x', 'config_sha256': 'y'}}, "missing 'weights_sha256'"),
    ({'generator': {**GENERATOR, 'typ': 'x'}}, "unknown 'typ'"),
    ({'generator': {**GENERATOR, 'type': None}}, "must have a string as 'type'"),
    ({'guidance': {}}, "missing 'name'"),
    ({'guidance': {'name': 'x', 'step': 1}}, "unknown 'step'"),
    ({'guidance': {'name': 'x', 'trace': {}}}, 'list of dicts'),
    ({'guidance': {'name': 'x', 'trace': [{'loss': '1'}]}}, "'loss' = '1' in entry 0"),
    ({'filter': []}, '`filter` must be an object or null'),
])
def test_wrong_fields_are_named_with_file_and_line(tmp_path, changes, message):
    path = tmp_path / 'manifest.jsonl'
    path.write_text(f'{line(id="first", image="img_dir/f.png", mask="ann_dir/f.png")}\n{line(**changes)}\n')
    with pytest.raises(ValueError) as error:
        list(read_records(tmp_path))  # what guidance did is looked at when it is read
    assert message in str(error.value) and f'{path}, line 2' in str(error.value)


@pytest.mark.parametrize('text, message', [
    ('', 'Expecting value'), ('[1]', 'must be an object'), ('{"id": NaN}', 'NaN is not JSON'),
    ('{"id": "a", "id": "b"}', 'a key is repeated'), ('{"id": "a"', 'line 1'), ('[' * 100000, 'line 1'),
    (line()[:-1] + ', "extra": 1}', "unknown 'extra'"), ('{"id": "a"}', "missing 'image'"),
])
def test_lines_that_are_no_record(text, message):
    with pytest.raises(ValueError, match='manifest.jsonl, line 1') as error:
        PoolRecord.from_json(text, source='manifest.jsonl', line_number=1)
    assert message in str(error.value)


def test_all_broken_fields_are_named_at_once():
    with pytest.raises(ValueError, match='`id`.*`seed`'):
        record(id='', seed=-1)


def test_values_without_a_place_in_json():
    with pytest.raises(ValueError, match='`filter` must hold numbers.*ndarray'):
        record(filter={'map': np.zeros(2)})
    with pytest.raises(ValueError, match='strings as keys, got 3'):
        record(filter={3: 1})


def test_repeated_id_and_bytes_that_are_no_text(tmp_path):
    path = tmp_path / 'manifest.jsonl'
    path.write_text(f'{line()}\n{line()}\n')
    with pytest.raises(ValueError, match='line 2: id .* stands there twice'):
        read_records(tmp_path)
    path.write_bytes(b'\xff\xfe\n')
    with pytest.raises(ValueError, match='line 1: not UTF-8'):
        read_records(tmp_path)
