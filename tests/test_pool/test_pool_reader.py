"""The reader of trainings: by number, while the pool grows or is filtered, at little cost per record."""
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mixed_data import mixed_loader, write_mixed

from mmsynth.pool import Pool
from mmsynth.pool.index import LineIndex
from mmsynth.pool.reader import LOOK_EVERY, PoolReader

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    with Pool.create(tmp_path, {}, CLASSES, PALETTE) as pool:
        yield pool


def add(pool: Pool, *ids: str, keep: bool | None = None, prompt: str = '', size: tuple[int, int] = (4, 4)) -> None:
    entry = None if keep is None else dict(keep=keep)
    for id in ids:
        pool.add(id, np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8), source_mask='m', prompt=prompt, seed=0,
                 filter=entry, generator=dict(type='x', config_sha256='', weights_sha256=None))


def test_samples_join_from_the_iteration_at_which_they_are_seen(pool: Pool) -> None:
    add(pool, 'a', 'b')
    reader = PoolReader(pool.root)
    assert reader.update(3) and reader.live(0) == [0, 1] and not reader.update(5)
    add(pool, 'c')
    later = 2 * LOOK_EVERY + 7
    assert not reader.update(LOOK_EVERY - 1)  # a rank that is slower looks at the same iterations
    assert reader.update(later) and reader.live(later - 1) == [0, 1] and reader.live(later) == [0, 1, 2]
    assert [reader.record(number).id for number in range(3)] == ['a', 'b', 'c'] and reader.record(3) is None


def test_a_pool_that_comes_later_counts_from_then(pool: Pool, tmp_path: Path) -> None:
    reader = PoolReader(tmp_path / 'later')
    assert not reader.update(0)
    shutil.copytree(pool.root, tmp_path / 'later', dirs_exist_ok=True, ignore=lambda *_: ['later'])
    with Pool.resume(tmp_path / 'later') as later:
        add(later, 'a')
    assert reader.update(5) and reader.live(4) == [] and reader.live(5) == [0]


def test_a_worker_reads_on_after_the_manifest_was_rewritten(pool: Pool) -> None:
    """Lines move then, and what is at their old places is another sample or none."""
    add(pool, 'a', 'b', 'c')
    worker = PoolReader(pool.root)
    worker.update()
    pool.update([replace(pool.get('a'), filter=dict(keep=True, reason='long enough to move the lines'))])
    pool.write_kept()
    assert [worker.record(number).id for number in range(3)] == ['a', 'b', 'c']


def test_a_sample_that_another_took_the_place_of_is_named(pool: Pool) -> None:
    add(pool, 'a', 'b')
    main, worker = PoolReader(pool.root), PoolReader(pool.root)
    main.update()
    worker.update()
    pool.remove(['a'])
    add(pool, 'c')
    with pytest.raises(ValueError, match='removed from the pool'):
        worker.record(0)
    with pytest.raises(ValueError, match='removed from the pool'):
        main.update(LOOK_EVERY)


def test_a_training_takes_up_what_is_added_to_its_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers that run already, and a filter that rewrites the manifest meanwhile."""
    monkeypatch.setattr('mmsynth.pool.reader.LOOK_EVERY', 10)
    write_mixed(tmp_path, real=10, synthetic=1)
    batches = iter(mixed_loader(tmp_path, ratio=0.4, workers=2, loader=dict(persistent_workers=True)))
    found = [next(batches) for _ in range(3)]
    with Pool.resume(tmp_path / 'pool') as pool:
        add(pool, 's1', 's2', size=(16, 24))
        pool.update([replace(record, filter=dict(keep=True)) for record in pool.records])
    found += [next(batches) for _ in range(20)]
    drawn = [{sample.sample_id for sample in batch['data_samples'] if sample.origin == 'synthetic'} for batch in found]
    assert drawn[:10] == [{'s0'}] * 10 and set().union(*drawn[10:]) == {'s0', 's1', 's2'}


def test_a_worker_finds_what_joined_after_it_was_started(pool: Pool) -> None:
    add(pool, 'a')
    worker = PoolReader(pool.root)
    worker.update()
    worker = pickle.loads(pickle.dumps(worker))
    add(pool, 'b')
    assert worker.record(1).id == 'b'


def test_dropped_samples_are_not_live_and_a_filter_counts_from_when_it_is_seen(pool: Pool) -> None:
    add(pool, 'a', keep=True)
    add(pool, 'b', keep=False)
    add(pool, 'c', prompt='it says "keep": false')
    reader = PoolReader(pool.root)
    reader.update()
    assert reader.live() == [0, 2]
    pool.update([replace(pool.get('c'), filter=dict(keep=False))])
    pool.write_kept()
    later = LOOK_EVERY + 4
    assert reader.update(later) and reader.live(later - 1) == [0, 2] and reader.live(later) == [0]


def test_a_manifest_that_is_rewritten_at_equal_length_is_read_anew(pool: Pool) -> None:
    """Another filter's result, in lines of the same lengths: the last line is where it was."""
    add(pool, 'a', keep=True)
    add(pool, 'b', keep=False)
    add(pool, 'c', keep=True)
    index = LineIndex(pool.root / 'manifest.jsonl')
    size = index.path.stat().st_size
    pool.update([replace(pool.get(id), filter=dict(keep=keep)) for id, keep in (('a', False), ('b', True))])
    pool.write_kept()
    assert index.path.stat().st_size == size
    assert index.refresh() and index.kept.tolist() == [False, True, True]


def test_removed_samples_are_named(pool: Pool) -> None:
    add(pool, 'a', 'b')
    reader = PoolReader(pool.root)
    reader.update()
    pool.remove(['a'])
    with pytest.raises(ValueError, match='removed from the pool'):
        reader.update()


def test_a_line_is_checked_when_it_is_read(pool: Pool) -> None:
    add(pool, 'a')
    path = pool.root / 'manifest.jsonl'
    entry = json.loads(path.read_text()) | dict(image='../a.png')
    path.write_text(json.dumps(entry) + '\n')
    with pytest.raises(ValueError, match='line 1.*`image`'):
        LineIndex(path).record(0)


def test_a_block_may_end_anywhere(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    add(pool, *map(str, range(20)), keep=False)
    path = pool.root / 'manifest.jsonl'
    whole = LineIndex(path)
    monkeypatch.setattr('mmsynth.pool.index._BLOCK', 700)
    parts = LineIndex(path)
    assert np.array_equal(whole.rows, parts.rows) and not parts.kept.any() and len(parts) == 20
    assert [parts.record(line).id for line in range(20)] == list(map(str, range(20)))


def test_a_reader_holds_a_few_bytes_per_record(pool: Pool) -> None:
    """What a worker is given, and holds after it has read: not the records, whose traces may be long."""
    add(pool, *map(str, range(100)), prompt='a long text ' * 200)
    reader = PoolReader(pool.root)
    reader.update()
    assert all(reader.record(number).id == str(number) for number in range(100))
    assert len(pickle.dumps(reader)) < 10_000 < (pool.root / 'manifest.jsonl').stat().st_size / 20


def test_a_large_pool_has_an_index_which_is_not_taken_once_it_is_old(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmsynth.pool.index.INDEX_FROM', 100)
    with Pool.create(tmp_path, {}, CLASSES, PALETTE) as pool:
        add(pool, 'a', 'c')
        add(pool, 'b', keep=False)
    path = tmp_path / 'manifest.jsonl'
    scanned: list[tuple] = []
    read = LineIndex._rows
    monkeypatch.setattr(LineIndex, '_rows', lambda self, *lines: scanned.append(lines) or read(self, *lines))
    index = LineIndex(path)
    assert not scanned and index.kept.tolist() == [True, True, False] and index.record(2).id == 'b'
    with open(path, 'a') as file:
        file.write(json.dumps(json.loads(index.text(0)) | dict(id='d')) + '\n')
    assert [LineIndex(path).find(id) for id in 'abcde'] == [0, 2, 1, 3, None] and len(scanned) == 1
    path.write_text(path.read_text().replace('false', 'true'))  # an index that is older than the manifest
    assert LineIndex(path).kept.tolist() == [True] * 4
    stored = tmp_path / 'manifest.index.npy'
    rows = np.load(stored)
    for damaged in (b'\x93NUMPY', b'', stored.read_bytes()[:-20]):
        stored.write_bytes(damaged)
        assert len(LineIndex(path)) == 4
    for field, value in (('start', -1), ('length', 1 << 30), ('file', 7)):  # of the second line
        wrong = rows.copy()
        wrong[field][2] = value
        np.save(stored, wrong)
        assert LineIndex(path).record(1).id == 'c'


def test_a_stored_index_is_mapped_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmsynth.pool.index.INDEX_FROM', 100)
    with Pool.create(tmp_path, {}, CLASSES, PALETTE) as pool:
        add(pool, *map(str, range(5)))
    base = LineIndex(tmp_path / 'manifest.jsonl').rows
    while not isinstance(base, np.memmap):
        base = base.base
    assert len(Pool.open(tmp_path).records) == 5
