"""tools/select_samples.py: options, lists and table, on a pool with the filter's entries."""
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import ROOT

from mmsynth.apis.select_samples import select_samples
from mmsynth.filtering.identity import label_hash
from mmsynth.filtering.summary import selection_table
from mmsynth.pool import Pool, file_name

CLASSES = ('field', 'road', 'water')


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Three samples: fields only, a road that was filtered away in part, water that was filtered away."""
    mask = np.zeros((10, 10), np.uint8)
    entries = dict(
        a=dict(pixels=dict(field=100), removed=dict(field=0), keep=True, valid=1.0, hardness=0.5),
        b=dict(pixels=dict(field=60, road=40), removed=dict(field=50, road=20), keep=False, valid=0.3, hardness=2.0),
        c=dict(pixels=dict(field=90, water=10), removed=dict(field=80, water=10), keep=False, valid=0.1, hardness=1.0))
    with Pool.create(tmp_path / 'pool', dict(seed=0), CLASSES, [(0, 0, 0)] * 3) as pool:
        for id, values in entries.items():
            pool.add(id, np.zeros((10, 10, 3), np.uint8), mask, source_mask=f'{id}.png', prompt='', seed=0,
                     generator=dict(type='T', config_sha256='c', weights_sha256=None),
                     filter=dict(filter_sha256='f', labels_sha256=label_hash(mask), weight=None, loss={}, reason='',
                                 label=f'filtered/{file_name(id)}.png') | values)
    return Pool.open(tmp_path / 'pool')


def stems(*ids: str) -> list[str]:
    return [file_name(id) for id in ids]


def test_the_worst_classes_of_an_evaluation_are_weak(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / 'scores.json').write_text(json.dumps(dict(field=0.9, road=0.2, water=0.3)))
    assert select_samples(pool.root, worst=1, scores=tmp_path / 'scores.json').lines() == stems('a', 'b')
    two = select_samples(pool.root, worst=2, scores=tmp_path / 'scores.json')
    assert two.lines() == stems('a', 'b')  # no water is left
    assert select_samples(pool.root, weak_classes=['field'], worst=1,
                          scores=tmp_path / 'scores.json').lines() == stems('a', 'b', 'c')
    for options in (dict(worst=1), dict(scores='x')):
        with pytest.raises(ValueError, match='`worst` and `scores` go together'):
            select_samples(pool.root, **options)


def test_the_table_tells_shares_before_and_after(pool: Pool) -> None:
    selection = select_samples(pool.root, weak_classes=['road'], max_repeats=3)
    assert selection.lines() == stems('a', 'b', 'b', 'b')
    table = selection_table(pool, selection)
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == list(CLASSES)
    assert cells[1] == ['85.71 %', '14.29 %', '0.00 %']  # 120 and 20 of 140
    assert cells[2] == ['68.42 %', '31.58 %', '0.00 %']  # 100 + 3 * 10 and 3 * 20


def test_the_tool(pool: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, 'argv', ['select_samples.py', str(pool.root), '--weak-classes', 'road', '--min-valid',
                                      '0.9', '--max-repeats', '2'])
    runpy.run_path(str(ROOT / 'tools' / 'select_samples.py'), run_name='__main__')
    output = capsys.readouterr().out
    assert '2 of 3 samples selected, 3 lines in' in output and 'share of trusted pixels' in output
    assert (pool.root / 'selected.txt').read_text().split() == stems('a', 'b', 'b')
    assert json.loads((pool.root / 'images_per_mask.json').read_text()) == dict(a=1, b=2, c=1)
    assert len(Pool.open(pool.root)) == 3  # the pool is as it was
