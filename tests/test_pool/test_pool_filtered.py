"""What a filter adds to a pool: its files, the update of records, and what a killed writer leaves of it."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsynth.pool import Pool, PoolRecord, read_records
from mmsynth.pool.index import FILTERED, LineIndex
from mmsynth.utils import files

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))
GENERATOR = {'type': 'x', 'config_sha256': 'ab', 'weights_sha256': None}
MASK = np.array([[0, 1, 255]], np.uint8)
LABEL = np.array([[0, 255, 255]], np.uint8)
WEIGHT = np.array([[255, 3, 0]], np.uint8)


def create(root: Path, ids: str = 'abc') -> Pool:
    pool = Pool.create(root, {}, CLASSES, PALETTE)
    for id in ids:
        if not pool.has(id):
            pool.add(id, np.zeros((1, 3, 3), np.uint8), MASK, source_mask='m', prompt='', seed=0, generator=GENERATOR)
    return pool


def filtered(pool: Pool, ids: str, weights: bool = False, keep: bool = True) -> list[PoolRecord]:
    """Store a result for some samples; the records that were given."""
    records = [replace(record, filter=dict(keep=keep)) for record in pool.records if record.id in ids]
    pool.update(records, filtered=dict.fromkeys(ids, LABEL), weights=dict.fromkeys(ids, WEIGHT) if weights else None)
    return records


def stored(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for folder in ('filtered', 'weights') for path in (root / folder).glob('*')}


def read(path: Path) -> list:
    with Image.open(path) as file:
        assert file.mode == 'L'
        return np.asarray(file).tolist()


def test_an_update_writes_files_and_lines_and_leaves_the_rest(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        before = {record.id: record for record in pool.records}
        lines = (tmp_path / 'manifest.jsonl').read_bytes().split(b'\n')
        filtered(pool, 'ac', weights=True)
    after = {record.id: record for record in read_records(tmp_path)}
    assert list(after) == list('abc') and after['b'] == before['b']
    assert (tmp_path / 'manifest.jsonl').read_bytes().split(b'\n')[1] == lines[1]
    for id in 'ac':
        name = Path(after[id].image).name
        assert after[id].filter == dict(keep=True, label=f'filtered/{name}', weight=f'weights/{name}')
        assert read(tmp_path / after[id].filter['label']) == LABEL.tolist()
        assert read(tmp_path / after[id].filter['weight']) == WEIGHT.tolist()
        assert read(tmp_path / after[id].mask) == MASK.tolist()
    assert stored(tmp_path) == {path for id in 'ac' for path in after[id].filter_files}


def test_what_add_writes_is_what_update_writes(tmp_path: Path) -> None:
    with create(tmp_path / 'one', 'a') as pool:
        filtered(pool, 'a', weights=True)
    with create(tmp_path / 'other', '') as pool:
        pool.add('a', np.zeros((1, 3, 3), np.uint8), MASK, source_mask='m', prompt='', seed=0, generator=GENERATOR,
                 filter=dict(keep=True), filtered=LABEL, weight=WEIGHT)
    assert read_records(tmp_path / 'one') == read_records(tmp_path / 'other')
    for path in stored(tmp_path / 'one'):
        assert (tmp_path / 'one' / path).read_bytes() == (tmp_path / 'other' / path).read_bytes()


def test_kept_names_what_is_kept_and_goes_when_results_change(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        filtered(pool, 'c')
        filtered(pool, 'a')
        filtered(pool, 'b', keep=False)
        names = pool.write_kept()
        assert names == [Path(record.image).stem for record in pool.records if record.id in 'ac']
        assert (tmp_path / 'kept.txt').read_text().splitlines() == names
        pool.remove('a')
        assert (tmp_path / 'kept.txt').read_text().splitlines() == names[1:]
        pool.update([replace(pool.records[0], filter=None)])
        assert not (tmp_path / 'kept.txt').exists()


def test_taking_a_result_back_removes_its_files(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        filtered(pool, 'ab', weights=True)
        with pytest.raises(ValueError, match="sample 'a' .*already"):
            filtered(pool, 'a')
        pool.update([replace(record, filter=None) for record in pool.records])
        assert stored(tmp_path) == set() and all(record.filter is None for record in read_records(tmp_path))
        filtered(pool, 'a')
        assert stored(tmp_path) == {pool.records[0].filter['label']}


def test_recovery_of_leftovers_and_of_lost_files(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        filtered(pool, 'ab', weights=True)
        pool.write_kept()
        lost, whole = pool.records[:2]
    (tmp_path / 'filtered' / 'x-0123456789ab.png').write_bytes(b'half')
    (tmp_path / 'weights' / '.tmp-12').write_bytes(b'half')
    (tmp_path / lost.filter['weight']).unlink()
    with pytest.warns(UserWarning, match="1 of 3 .*'a'"):
        pool = Pool.resume(tmp_path)
    with pool:
        assert [record.filter for record in pool.records] == [None, whole.filter, None]
        assert stored(tmp_path) == set(whole.filter_files) and not (tmp_path / 'kept.txt').exists()


@pytest.mark.parametrize('call', range(1, 5))
def test_a_failing_update_leaves_the_records_as_they_were(tmp_path: Path, monkeypatch, call: int) -> None:
    """The n-th fsync fails: two labels, their folder, the journal."""
    calls, real = [], files.os.fsync

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(28, 'No space left on device')
        real(descriptor)

    with create(tmp_path, 'ab') as pool:
        before = pool.records
        with monkeypatch.context() as patch:
            patch.setattr(files.os, 'fsync', failing)
            with pytest.raises(OSError, match='No space'):
                filtered(pool, 'ab')
        assert pool.records == before
    with Pool.resume(tmp_path) as pool:
        assert pool.records == before and stored(tmp_path) == set()
        assert stored(tmp_path) == {path for record in pool.records for path in record.filter_files}


def test_mistakes_are_named(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        first = pool.records[0]
        with pytest.raises(ValueError, match="must be stored in .*, got 'z'"):
            pool.update([replace(first, id='z')])
        with pytest.raises(ValueError, match='must leave `image` and `mask` as they are'):
            pool.update([replace(first, image='img_dir/x.png', mask='ann_dir/x.png')])
        with pytest.raises(ValueError, match='a filtered label needs `filter`'):
            pool.update([first], filtered={'a': LABEL})
        with pytest.raises(ValueError, match=r"'a': `weight` must be \(1, 3\) uint8"):
            pool.update([replace(first, filter={})], filtered={'a': LABEL}, weights={'a': WEIGHT.astype(float)})
        assert pool.records[0] == first
    with pytest.raises(RuntimeError, match='not open for writing'):
        Pool.open(tmp_path).update([first])
    with pytest.raises(ValueError, match='is not a pool'):
        Pool.resume(tmp_path / 'img_dir')


@pytest.mark.parametrize('label', ['/etc/passwd', 'filtered/../x.png', 'ann_dir/a.png', 3])
def test_a_record_cannot_name_a_label_outside_its_folder(tmp_path: Path, label: object) -> None:
    with create(tmp_path) as pool:
        with pytest.raises(ValueError, match="`filter` has the 'label' "):
            replace(pool.records[0], filter=dict(label=label))
        with pytest.raises(ValueError, match='must have the same file name'):
            replace(pool.records[0], filter=dict(label='filtered/other.png'))


def test_updates_go_to_a_journal_that_is_merged_once(tmp_path: Path) -> None:
    """Rewriting the manifest for every few samples would write its square."""
    with create(tmp_path, 'abc') as pool:
        manifest = (tmp_path / 'manifest.jsonl').read_bytes()
        filtered(pool, 'a')
        filtered(pool, 'b')
        assert (tmp_path / 'manifest.jsonl').read_bytes() == manifest
        assert [record.filter is not None for record in Pool.open(tmp_path).records] == [True, True, False]
        pool.write_kept()
        assert not (tmp_path / 'manifest.journal.jsonl').exists()
        merged = (tmp_path / 'manifest.jsonl').read_bytes()
    assert merged != manifest and (tmp_path / 'manifest.jsonl').read_bytes() == merged


def test_a_journal_of_a_killed_run_counts(tmp_path: Path) -> None:
    pool = create(tmp_path, 'ab')
    filtered(pool, 'a')
    pool._lock.release()  # killed: nothing is merged
    with open(tmp_path / 'manifest.journal.jsonl', 'ab') as file:
        file.write(b'{"id": "b"')  # and a line is torn
    with Pool.resume(tmp_path) as again:
        assert [record.filter is not None for record in again.records] == [True, False]
        assert not (tmp_path / 'manifest.journal.jsonl').exists()


def test_a_new_result_takes_the_selection_of_the_old_one_with_it(tmp_path: Path) -> None:
    with create(tmp_path, 'ab') as pool:
        filtered(pool, 'a')
        for name in ('selected.txt', 'images_per_mask.json'):
            (tmp_path / name).write_text('old')
        filtered(pool, 'b')
    assert not (tmp_path / 'selected.txt').exists() and not (tmp_path / 'images_per_mask.json').exists()


def test_the_manifest_names_no_label_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers in training do not know the journal."""
    with create(tmp_path, 'ab') as pool:
        filtered(pool, 'ab')
        pool.write_kept()
        unlink = Path.unlink

        def checking(path: Path, **options: object) -> None:
            if path.parent.name == 'filtered':
                assert not (LineIndex(tmp_path / 'manifest.jsonl').rows['flags'] & FILTERED).any()
            unlink(path, **options)

        monkeypatch.setattr(Path, 'unlink', checking)
        pool.update([replace(record, filter=None) for record in pool.records])
    assert not stored(tmp_path)
