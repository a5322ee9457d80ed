"""selected.txt changed by hand: what is not marked stays, repeats survive, and it is as select_samples writes it."""
import json
from pathlib import Path

import pytest
from pool_samples import filter_entry, write_pool

from mmsynth.filtering.selected_list import SelectedList
from mmsynth.filtering.selection import Selection
from mmsynth.pool import Pool, file_name


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Four samples, of which the filter dropped s1."""
    return write_pool(tmp_path / 'pool', [dict(filter=filter_entry(index, keep=index != 1)) for index in range(4)])


def lines(pool: Pool) -> list[str]:
    stems = {file_name(record.id): record.id for record in pool.records}
    return [stems[line] for line in (pool.root / 'selected.txt').read_text().splitlines()]


def select(pool: Pool, **repeats: int) -> bytes:
    """The files as tools/select_samples.py writes them."""
    Selection({file_name(id): count for id, count in repeats.items()}, {},
              {id: max(count, 1) for id, count in repeats.items()}).write(pool.root)
    return (pool.root / 'selected.txt').read_bytes()


def test_without_a_list_it_is_what_the_filter_kept(pool: Pool) -> None:
    chosen = SelectedList(pool)
    assert chosen.counts.tolist() == [1, 0, 1, 1]
    chosen.mark([0], keep=True)  # it is kept: nothing to write
    assert not (pool.root / 'selected.txt').exists()
    chosen.mark([2], keep=False)
    assert lines(pool) == ['s0', 's3'] and chosen.counts.tolist() == [1, 0, 0, 1]
    chosen.mark([1, 2], keep=True)
    assert lines(pool) == ['s0', 's1', 's2', 's3']


def test_it_writes_what_a_selection_writes(pool: Pool) -> None:
    written = select(pool, s0=2, s1=0, s2=3, s3=1)
    numbers = (pool.root / 'images_per_mask.json').read_bytes()
    chosen = SelectedList(pool)
    chosen.mark([2], keep=False)
    assert lines(pool) == ['s0', 's0', 's3']
    chosen.mark([2], keep=True)
    assert (pool.root / 'selected.txt').read_bytes() == written
    assert (pool.root / 'images_per_mask.json').read_bytes() == numbers


def test_repeats_survive_marks_of_others_and_a_new_start(pool: Pool) -> None:
    select(pool, s0=2, s1=0, s2=3, s3=1)
    SelectedList(pool).mark([3], keep=False)
    assert lines(pool) == ['s0'] * 2 + ['s2'] * 3
    SelectedList(pool).mark([2], keep=False)
    SelectedList(pool).mark([2, 3], keep=True)  # as often as the selection repeats kept samples of the mask
    assert lines(pool) == ['s0'] * 2 + ['s2'] * 3 + ['s3']
    (pool.root / 'images_per_mask.json').unlink()
    again = SelectedList(pool)
    again.mark([2], keep=False)
    again.mark([2], keep=True)  # as often as before
    assert lines(pool) == ['s0'] * 2 + ['s2'] * 3 + ['s3']


def test_what_others_write_meanwhile_is_kept(pool: Pool) -> None:
    one, other = SelectedList(pool), SelectedList(pool)
    one.mark([0], keep=False)
    other.mark([3], keep=False)
    assert lines(pool) == ['s2'] and one.counts.tolist() == [0, 0, 1, 0]
    select(pool, s0=0, s1=0, s2=0, s3=2)
    one.mark([1], keep=True)
    assert lines(pool) == ['s1', 's3', 's3']


def test_a_list_of_another_order_keeps_its_samples(pool: Pool) -> None:
    (pool.root / 'selected.txt').write_text('\n'.join(file_name(id) for id in ('s3', 's0', 's3')) + '\n')
    SelectedList(pool).mark([2], keep=True)
    assert lines(pool) == ['s0', 's2', 's3', 's3']


def test_mistakes(pool: Pool) -> None:
    chosen = SelectedList(pool)
    with pytest.raises(ValueError, match='no sample .* would be left'):
        chosen.mark([0, 2, 3], keep=False)
    assert not (pool.root / 'selected.txt').exists() and chosen.counts.tolist() == [1, 0, 1, 1]
    for wrong in ('[]', '{"s1": 0}', '{"s1": true}', '{"s1": "many"}'):
        (pool.root / 'images_per_mask.json').write_text(wrong)
        with pytest.raises(ValueError, match='images_per_mask.json must say'):
            chosen.mark([1], keep=True)
    (pool.root / 'selected.txt').write_text('nobody\nno_one\n')
    with pytest.raises(ValueError, match="selected.txt names 'nobody'.*2 such names"):
        SelectedList(pool)


def test_no_half_written_list(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = select(pool, s0=1, s1=0, s2=1, s3=1)
    chosen = SelectedList(pool)
    monkeypatch.setattr('mmsynth.utils.files.os.replace', lambda *paths: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        chosen.mark([0], keep=False)
    assert (pool.root / 'selected.txt').read_bytes() == before and chosen.counts.tolist() == [1, 0, 1, 1]
    assert json.loads((pool.root / 'images_per_mask.json').read_text()) == dict(s0=1, s1=1, s2=1, s3=1)
    assert not list(pool.root.glob('.tmp-*'))
