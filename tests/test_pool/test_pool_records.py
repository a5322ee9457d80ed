"""Records that are read when they are asked for are those that were written, whatever happened to the pool since."""
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmsynth.pool import Pool, PoolRecord, read_records
from mmsynth.pool.index import DROPPED, FILTERED, KEPT, LABELLED, LineIndex
from mmsynth.utils import files

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))
GENERATOR = dict(type='x', config_sha256='ab', weights_sha256=None)
IMAGE, MASK = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
TRACE = [dict(step=0, loss_before=0.5, loss_after=None), dict(step=1, loss_before=0.25, loss_after=0.125)]


def create(root: Path) -> Pool:
    return Pool.create(root, {}, CLASSES, PALETTE)


def add(pool: Pool, id: str, **changes: object) -> PoolRecord:
    return pool.add(id, IMAGE, MASK, **dict(source_mask='m', prompt='', seed=0, generator=GENERATOR) | changes)


def guided(number: int = 0) -> dict:
    return dict(name='CRFM', trace=[step | dict(seed=number) for step in TRACE])


# ---- against a plain dict of records


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('is_large', [True, False])
def test_any_history_leaves_what_a_dict_would_hold(tmp_path: Path, seed: int, is_large: bool,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Additions, results of filters, removals, new writers, and writers that are killed, in any order."""
    if is_large:
        monkeypatch.setattr('mmsynth.pool.index.INDEX_FROM', 0)
        monkeypatch.setattr('mmsynth.pool.records._COPIED', 50)
        monkeypatch.setattr('mmsynth.pool.store._TOGETHER', 2)
    rng, expected, pool = random.Random(seed), {}, create(tmp_path)
    for number in range(60):
        action = rng.choice(('add', 'add', 'add', 'filter', 'take back', 'remove', 'kept', 'close', 'kill'))
        some = rng.sample(sorted(expected), min(len(expected), rng.randrange(1, 4)))
        if action == 'add':
            expected[f's/{number}'] = add(pool, f's/{number}', prompt='p' * rng.randrange(40), guidance=guided(number))
        elif action == 'filter':
            entry = dict(keep=rng.random() < 0.5, reason='r' * rng.randrange(30))
            expected |= {id: replace(expected[id], filter=entry) for id in some}
            pool.update([expected[id] for id in some])
        elif action == 'take back':
            expected |= {id: replace(expected[id], filter=None) for id in some}
            pool.update(expected[id] for id in some)
        elif action == 'remove':
            pool.remove(some)
            expected = {id: record for id, record in expected.items() if id not in some}
        elif action == 'kept':
            kept = [record.image[8:-4] for record in expected.values() if record.filter and record.filter['keep']]
            assert pool.write_kept() == kept
        else:
            pool.close() if action == 'close' else pool._lock.release()
            pool = create(tmp_path)
        for found in (pool, Pool.open(tmp_path)):
            assert found.records == list(expected.values()) and len(found) == len(expected)
            assert all(found.get(id) == record for id, record in expected.items())
            assert not found.has('s/-1')
    assert [pool.load_trace(record)[0]['seed'] for record in pool.records] == [int(id[2:]) for id in expected]
    pool.close()


def test_what_was_asked_for_stays_what_it_was(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        before = [add(pool, id) for id in 'abc']
        records = pool.records
        pool.update([replace(before[0], filter=dict(keep=True))])
        pool.write_kept()
        pool.remove(['b'])
        assert records == before and records[1:] == before[1:] and records[-1] == before[-1]
        assert records[np.array([2, 0])] == [before[2], before[0]] and records != before[:2]
        assert [record.id for record in pool.records] == ['a', 'c']
        with pytest.raises(IndexError):
            records[3]


def test_records_go_to_another_process(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        before = [add(pool, id) for id in 'ab']
    records = Pool.open(tmp_path).records
    there = pickle.dumps(records)
    assert pickle.loads(there) == before
    with Pool.resume(tmp_path) as pool:
        pool.remove(['a'])
    assert records == before
    with pytest.raises(RuntimeError, match='manifest.jsonl was written anew'):
        pickle.loads(there)


def test_the_flags_of_a_row_say_what_the_filter_said(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        for id, entry in (('a', None), ('b', {}), ('c', dict(keep=True)), ('d', dict(keep=False))):
            add(pool, id, filter=entry)
        add(pool, 'e', filter=dict(keep=True), filtered=MASK)
        flags = [0, FILTERED, FILTERED | KEPT, FILTERED | DROPPED, FILTERED | KEPT | LABELLED]
        assert pool.records.rows['flags'].tolist() == flags
    assert LineIndex(tmp_path / 'manifest.jsonl').rows['flags'].tolist() == flags


def test_a_last_line_without_its_break_is_merged_whole(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        records = [add(pool, id) for id in 'ab']
    manifest = tmp_path / 'manifest.jsonl'
    manifest.write_bytes(manifest.read_bytes()[:-1])
    assert read_records(tmp_path) == records
    with Pool.resume(tmp_path) as pool:
        pool.update([replace(records[0], filter=dict(keep=True))])
        pool.write_kept()
        add(pool, 'c')
    assert [record.id for record in read_records(tmp_path)] == ['a', 'b', 'c']


# ---- traces


def test_traces_stand_beside_the_manifest(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        written = add(pool, 'a', guidance=guided(1))
        assert pool.load_trace(written) == guided(1)['trace']
        add(pool, 'b', guidance=dict(name='CRFM', trace=[]))
        add(pool, 'c')
        add(pool, 'd', guidance=guided(2))
        assert pool.load_trace(pool.get('d')) == guided(2)['trace']
    assert written.guidance == dict(name='CRFM') and 'loss' not in (tmp_path / 'manifest.jsonl').read_text()
    opened = Pool.open(tmp_path)
    assert [opened.load_trace(record) for record in opened.records] == [guided(1)['trace'], [], [], guided(2)['trace']]


def test_a_pool_of_an_earlier_version_opens_and_goes_on(tmp_path: Path) -> None:
    """Its traces stand in the manifest, and stay there."""
    with create(tmp_path) as pool:
        record = add(pool, 'old')
    line = json.loads(record.to_json()) | dict(guidance=guided(7))
    (tmp_path / 'manifest.jsonl').write_text(json.dumps(line) + '\n')
    with Pool.resume(tmp_path) as pool:
        add(pool, 'new', guidance=guided(8))
        pool.update([replace(pool.get('old'), filter=dict(keep=True))])
    opened = Pool.open(tmp_path)
    assert [opened.load_trace(record)[0]['seed'] for record in opened.records] == [7, 8]
    assert opened.get('old').filter == dict(keep=True)
    with Pool.resume(tmp_path) as pool:
        pool.remove(['new'])
        assert pool.load_trace(pool.get('old')) == guided(7)['trace']


def test_a_damaged_trace_of_an_earlier_version_is_named_when_it_is_read(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        record = add(pool, 'a', prompt='it says "trace": [1]')
    line = json.loads(record.to_json()) | dict(guidance=dict(name='CRFM', trace=[1]))
    (tmp_path / 'manifest.jsonl').write_text(json.dumps(line) + '\n')
    pool = Pool.open(tmp_path)
    with pytest.raises(ValueError, match="manifest.jsonl, line 1.*'trace'"):
        pool.get('a')


def test_a_damaged_line_of_traces_is_named(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        record = add(pool, 'a', guidance=guided(1))
    path = tmp_path / 'traces.jsonl'
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"a\x01"', 1))
    with pytest.raises(ValueError, match=r'traces.jsonl, line 1: must be a trace, \{"id": "…", .*Delete the line'):
        Pool.open(tmp_path).load_trace(record)


def test_removed_samples_take_their_traces_along(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        for number in range(4):
            add(pool, str(number), guidance=guided(number))
        pool.remove(['0', '2'])
        assert len((tmp_path / 'traces.jsonl').read_text().splitlines()) == 2
        add(pool, '0', guidance=guided(9))
        assert [pool.load_trace(record)[0]['seed'] for record in pool.records] == [1, 3, 9]


@pytest.mark.parametrize('torn', [b'{"id": "b"', b'{"id": "b", "trace": [{"step": 0}', b'{"id": "b", "trace": []}'])
def test_a_trace_without_its_record_does_no_harm(tmp_path: Path, torn: bytes) -> None:
    """What a writer leaves that is killed between the two lines; the sample is made again."""
    with create(tmp_path) as pool:
        add(pool, 'a', guidance=guided(1))
    with open(tmp_path / 'traces.jsonl', 'ab') as file:
        file.write(torn)
    assert Pool.open(tmp_path).load_trace(read_records(tmp_path)[0]) == guided(1)['trace']
    with create(tmp_path) as pool:
        assert not pool.has('b')
        add(pool, 'b', guidance=guided(2))
        assert [pool.load_trace(record)[0]['seed'] for record in pool.records] == [1, 2]


def test_a_full_disk_between_trace_and_record_leaves_the_pool_as_it_was(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The sixth fsync: image, its folder, mask, its folder, trace, manifest."""
    calls, sync = [], files.os.fsync

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 6:
            raise OSError(28, 'No space left on device')
        sync(descriptor)

    with create(tmp_path) as pool:
        first = add(pool, 'a', guidance=guided(1))
        with monkeypatch.context() as patch:
            patch.setattr(files.os, 'fsync', failing)
            with pytest.raises(OSError, match='No space'):
                add(pool, 'b', guidance=guided(2))
        assert pool.records == [first] and [path.name for path in (tmp_path / 'img_dir').iterdir()] == [first.image[8:]]
        second = add(pool, 'b', guidance=guided(3))
        assert pool.load_trace(second) == guided(3)['trace']
    assert read_records(tmp_path) == [first, second]


@pytest.mark.parametrize('line', ['[1]', '{"id": "a", "trace": [1]}', '{"id": "a", "trace": [{"step": "x"}]}',
                                  '{"id": "a", "trace": [{"step": NaN}]}'])
def test_a_damaged_trace_is_named(tmp_path: Path, line: str) -> None:
    with create(tmp_path) as pool:
        record = add(pool, 'a', guidance=guided(1))
    (tmp_path / 'traces.jsonl').write_text(line + '\n')
    with pytest.raises(ValueError, match='traces.jsonl, line 1'):
        Pool.open(tmp_path).load_trace(record)
