"""What the browser of a pool shows: order, filters and pages, and which of it needs to read the records."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_samples import filter_entry, write_pool

from mmsynth.pool import Pool, Records
from mmsynth.utils.files import FolderLock
from mmsynth.visualization import pool_view
from mmsynth.visualization.pool_view import PoolView, Query


def trace(*losses: float) -> dict[str, Any]:
    return dict(name='CRFM', trace=[dict(step=step, loss_before=loss) for step, loss in enumerate(losses)])


@pytest.fixture
def view(tmp_path: Path) -> PoolView:
    """Five samples with masks of class i % 3; s4 never went through the filter, and s2 was not guided."""
    write_pool(tmp_path / 'pool', [
        dict(filter=filter_entry(0, hardness=2., label=None), guidance=trace(3., 1.)),
        dict(filter=filter_entry(1, hardness=3., keep=False, label=None), guidance=trace(2., 2.)),
        dict(filter=filter_entry(2, hardness=1., label=None, pixels=dict(water=150, house=50), removed={})),
        dict(filter=filter_entry(3, hardness=None, label=None), guidance=trace(1., 3.)),
        dict(guidance=trace(4., 0.5))])
    return PoolView(tmp_path / 'pool')


def shown(view: PoolView, **query: Any) -> list[int]:
    return view.numbers(Query(**query)).tolist()


@pytest.mark.parametrize('query, expected', [
    (dict(), [0, 1, 2, 3, 4]),
    (dict(down=True), [4, 3, 2, 1, 0]),
    (dict(sort='hardness'), [2, 0, 1, 3, 4]),  # without the number last, in both directions
    (dict(sort='hardness', down=True), [1, 0, 2, 3, 4]),
    (dict(sort='before'), [3, 1, 0, 4, 2]),
    (dict(sort='after'), [4, 0, 1, 3, 2]),
    (dict(sort='after', down=True), [3, 1, 0, 4, 2]),
    (dict(sort='share', of=1, down=True), [1, 4, 2, 0, 3]),  # equals stay in the pool's order
    (dict(has=2), [2]),
    (dict(has=1), [1, 2, 4]),  # s4 by its mask's file
    (dict(show='kept'), [0, 2, 3, 4]),
    (dict(show='dropped'), [1]),
    (dict(show='kept', has=1, sort='share', of=1), [2, 4]),
    (dict(show='dropped', has=0), []),
])
def test_order_and_filters(view: PoolView, query: dict[str, Any], expected: list[int]) -> None:
    assert shown(view, **query) == expected


def test_ids_are_sorted_by_the_alphabet(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / 'pool', [{}] * 12)
    ids = [record.id for record in pool.records]
    view = PoolView(pool.root)
    assert [ids[number] for number in shown(view, sort='id')] == sorted(ids) != ids
    assert [ids[number] for number in shown(view, sort='id', down=True)] == sorted(ids, reverse=True)


def test_pages(view: PoolView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_view, 'PAGE', 2)
    ids = [[record.id for record in view.page(Query(down=True, page=page)).records] for page in (1, 2, 3, 9)]
    assert ids == [['s4', 's3'], ['s2', 's1'], ['s0'], ['s0']]
    last = view.page(Query(down=True, page=9))
    assert (last.query.page, last.pages, last.found, last.counts) == (3, 3, 5, [1])
    none = view.page(Query(show='dropped', has=0))
    assert (len(none.records), none.pages, none.found, none.query.page) == (0, 1, 0, 1)


def test_a_page_in_the_pools_order_reads_its_records_only(view: PoolView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_view, 'PAGE', 2)
    read, original = [], Records._read
    monkeypatch.setattr(Records, '_read', lambda self, row: read.append(1) or original(self, row))
    for query in (Query(page=2), Query(down=True), Query(show='kept')):
        list(view.page(query).records)
    assert len(read) == 6
    view.page(Query(sort='hardness'))
    view.page(Query(sort='hardness', down=True))
    assert len(read) == 6 + 5  # once for both


def test_marks_and_totals(view: PoolView) -> None:
    key = int(view.pool.records.rows['id'][2])
    assert view.totals == (5, 4, 4) and view.find(key).id == 's2'
    assert view.mark(key, keep=False) == 0 and view.totals == (5, 3, 3)
    assert shown(view, show='dropped') == [1, 2]
    assert view.mark(key, keep=True) == 1 and view.totals == (5, 4, 4)
    with pytest.raises(KeyError, match='no such sample'):
        view.mark(key + 1, keep=True)


def test_what_is_added_or_filtered_is_seen(view: PoolView) -> None:
    assert shown(view, sort='hardness')[-1] == 4
    with Pool.resume(view.root) as pool:
        pool.add('new', np.zeros((16, 24, 3), np.uint8), np.zeros((16, 24), np.uint8), source_mask='m', prompt='',
                 seed=0, generator=view.pool.records[0].generator)
        with pytest.raises(RuntimeError, match='is being written by process'):
            view.mark(int(view.pool.records.rows['id'][0]), keep=False)
    view.refresh()
    assert len(view.pool) == 6 and shown(view, sort='hardness') == [2, 0, 1, 3, 4, 5]
    with FolderLock(view.root), pytest.raises(RuntimeError, match='is being written'):
        view.mark(int(view.pool.records.rows['id'][0]), keep=False)
    assert not (view.root / 'selected.txt').exists()


def test_masks_that_cannot_be_read_have_no_classes(view: PoolView) -> None:
    (view.root / view.pool.records[4].mask).write_bytes(b'torn')
    assert shown(view, has=1) == [1, 2]


def test_addresses_and_queries_are_the_same(view: PoolView) -> None:
    for query in (Query(), Query('share', True, 2, 1, 'kept', 7), Query('id', has=0)):
        assert Query.parse({name: str(value) for name, value in query.fields().items()}, 3) == query
    assert Query().fields() == {} and Query().fields(page=2) == dict(page=2)
    assert Query.parse({}, 3) == Query() and Query.parse(dict(page='0'), 3).page == 1


@pytest.mark.parametrize('values, message', [
    (dict(sort='colour'), "`sort` must be one of pool, id.*got 'colour'"),
    (dict(show='x'), "`show` must be one of all, kept, dropped, got 'x'"),
    (dict(has='3'), "`has` must be a number from 0 on and below 3, got '3'"),
    (dict(of='-1'), "`of` must be a number"),
    (dict(page='٣'), "`page` must be a number"),
])
def test_wrong_addresses(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Query.parse(values, 3)
