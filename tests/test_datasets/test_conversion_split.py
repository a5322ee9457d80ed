"""Tiles that cover an image, and images divided so that no place is in two parts."""
from pathlib import Path

import numpy as np
import pytest

from mmsynth.datasets.conversion import SplitRule
from mmsynth.datasets.conversion.split import check_places, divide, place_of
from mmsynth.datasets.conversion.tiling import windows

NAMES = [f'{place}_{number}' for place in ('east', 'north', 'south', 'west', 'mid') for number in range(3)]


@pytest.mark.parametrize('size, tile, stride, count', [
    ((6000, 6000), 512, None, 144),  # as mmseg cuts Potsdam
    ((6908, 7300), 512, None, 14 * 15), ((896, 900), 896, 512, 2), ((100, 40), 512, None, 1), ((40, 50), None, None, 1),
    ((33, 47), 16, 5, 5 * 8)])
def test_windows_cover_every_pixel_and_count_it_once(size: tuple[int, int], tile: int | None, stride: int | None,
                                                     count: int) -> None:
    found = windows(size, tile, stride)
    covered, new = np.zeros(size, bool), np.zeros(size, np.uint8)
    for part in found:
        assert part.top + part.height <= size[0] and part.left + part.width <= size[1]
        assert tile is None or (part.height, part.width) == (min(tile, size[0]), min(tile, size[1]))
        covered[part.top:part.top + part.height, part.left:part.left + part.width] = True
        new[part.top + part.seen_rows:part.top + part.height, part.left + part.seen_columns:part.left + part.width] += 1
    assert len(found) == count and covered.all() and (new == 1).all()


@pytest.mark.parametrize('tile, stride', [(16, 17), (16, 0), (0, None), (-1, None), (None, 4)])
def test_wrong_strides_are_refused(tile: int | None, stride: int | None) -> None:
    with pytest.raises(ValueError, match='`stride`'):
        windows((32, 32), tile, stride)


def test_places_named() -> None:
    parts = divide(NAMES, SplitRule(places='^([^_]+)_', val=('north', ), test=('west', 'mid')))
    assert {name: part for name, part in parts.items() if name.endswith('_0')} == {
        'east_0': 'train', 'north_0': 'val', 'south_0': 'train', 'west_0': 'test', 'mid_0': 'test'}


@pytest.mark.parametrize('seed', range(5))
def test_shares_take_whole_places(seed: int) -> None:
    rule = SplitRule(places='^([^_]+)_', val_share=0.2, test_share=0.4, seed=seed)
    parts = divide(NAMES, rule)
    assert sorted(parts.values()) == ['test'] * 6 + ['train'] * 6 + ['val'] * 3
    check_places([(place_of(name, rule.places), part) for name, part in parts.items()])
    assert parts == divide(NAMES[::-1], rule), 'the order of the names does not matter'
    assert any(divide(NAMES, SplitRule(places='^([^_]+)_', val_share=0.2, seed=other)) != parts for other in range(9))


def test_lists(tmp_path: Path) -> None:
    (tmp_path / 'val.txt').write_text('mid_0.tif\n\nmid_1\n')
    (tmp_path / 'train.txt').write_text('east_0\n')
    assert divide(NAMES, SplitRule(lists=dict(val=tmp_path / 'val.txt')))['mid_1'] == 'val'
    both = SplitRule(lists=dict(val=tmp_path / 'val.txt', train=tmp_path / 'train.txt'))
    assert divide(NAMES, both) == dict(mid_0='val', mid_1='val', east_0='train')


def test_two_parts_that_share_a_place_are_refused() -> None:
    check_places([('a', 'train'), ('a', 'train'), ('b', 'val')])
    with pytest.raises(ValueError, match=r'two parts share 1 place\(s\).*b \(train and val\)'):
        check_places([('a', 'train'), ('b', 'val'), ('b', 'train')])


@pytest.mark.parametrize('rule, message', [
    (dict(places='[', val=('a', )), '`places`.*no regular expression'),
    (dict(places='north'), '`places`.*no group'),
    (dict(val_share=0.6, test_share=0.5), '`val_share` and `test_share`'),
    (dict(val=('a', ), val_share=0.5), 'choose one'),
    (dict(places=r'^(\d+)_', val_share=0.2), "no place in the name 'east_0'"),
    (dict(places='^([^_]+)_', val=('paris', )), 'no place paris; places: east, mid, north'),
    (dict(places='^([^_]+)_', val=('mid', ), test=('mid', )), 'mid cannot be in `val` and in `test`'),
    (dict(places='(_)', val_share=0.2), 'left to train on'),
    (dict(lists=dict(val=Path('nowhere.txt'))), '`val_list`'),
])
def test_wrong_rules_are_refused(rule: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        divide(NAMES, SplitRule(**rule))


def test_wrong_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'a.txt').write_text('mid_0\nmid_9\n')
    (tmp_path / 'b.txt').write_text('mid_0\n')
    with pytest.raises(ValueError, match=r'`val_list` .*1 image\(s\) that are not there: mid_9'):
        divide(NAMES, SplitRule(lists=dict(val=tmp_path / 'a.txt')))
    with pytest.raises(ValueError, match='mid_0 is in `test_list` .* and in `val_list`'):
        divide(NAMES, SplitRule(lists=dict(val=tmp_path / 'b.txt', test=tmp_path / 'b.txt')))
