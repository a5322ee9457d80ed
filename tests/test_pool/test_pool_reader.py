"""The reader of trainings: by number, while the pool grows or is filtered, at little cost per record."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from mmsynth.pool import Pool
from mmsynth.pool.reader import ManifestIndex, PoolReader

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))
IMAGE, MASK = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    with Pool.create(tmp_path, {}, CLASSES, PALETTE) as pool:
        yield pool


def add(pool: Pool, *ids: str, keep: bool | None = None, prompt: str = '') -> None:
    entry = None if keep is None else dict(keep=keep)
    for id in ids:
        pool.add(id, IMAGE, MASK, source_mask='m', prompt=prompt, seed=0, filter=entry,
                 generator=dict(type='x', config_sha256='', weights_sha256=None))


def test_samples_join_from_the_iteration_at_which_they_are_seen(pool: Pool) -> None:
    add(pool, 'a', 'b')
    reader = PoolReader(pool.root)
    assert reader.update() and reader.live(0) == [0, 1] and not reader.update(5)
    add(pool, 'c')
    assert reader.update(7) and reader.live(6) == [0, 1] and reader.live(7) == [0, 1, 2]
    assert [reader.record(number).id for number in range(3)] == ['a', 'b', 'c'] and reader.record(3) is None


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
    pool.update([pool.get('c').__class__(**vars(pool.get('c')) | dict(filter=dict(keep=False)))])
    pool.write_kept()
    assert reader.update(4) and reader.live(3) == [0, 2] and reader.live(4) == [0]


def test_removed_samples_are_named(pool: Pool) -> None:
    add(pool, 'a', 'b')
    reader = PoolReader(pool.root)
    reader.update()
    pool.remove(['a'])
    with pytest.raises(ValueError, match='removed from the pool'):
        reader.update(1)


def test_a_line_is_checked_when_it_is_read(pool: Pool) -> None:
    add(pool, 'a')
    path = pool.root / 'manifest.jsonl'
    entry = json.loads(path.read_text()) | dict(image='../a.png')
    path.write_text(json.dumps(entry) + '\n')
    with pytest.raises(ValueError, match='line 1.*`image`'):
        ManifestIndex(path).record(0)


def test_a_block_may_end_anywhere(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    add(pool, *map(str, range(20)), keep=False)
    path = pool.root / 'manifest.jsonl'
    whole = ManifestIndex(path)
    monkeypatch.setattr('mmsynth.pool.reader._BLOCK', 700)
    parts = ManifestIndex(path)
    assert np.array_equal(whole.starts, parts.starts) and not parts.kept.any() and len(parts) == 20
    assert [parts.record(line).id for line in range(20)] == list(map(str, range(20)))


def test_an_index_takes_a_few_bytes_per_record(pool: Pool) -> None:
    add(pool, 'a')
    index = ManifestIndex(pool.root / 'manifest.jsonl')
    assert index.starts.nbytes + index.kept.nbytes <= 9 * (len(index) + 1)
