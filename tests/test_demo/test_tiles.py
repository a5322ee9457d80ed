"""Tiles to synthesize for."""
from collections import Counter

import numpy as np

from projects.demo import tiles


def test_every_tile_comes_once_before_any_comes_twice() -> None:
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4) % 5
    for count, most in ((4, 1), (7, 2), (8, 2), (100, 8)):
        seen = Counter(name.rsplit('_v')[0] for name, _ in tiles.cut_tiles({'a': mask}, 2, count, 0))
        assert sum(seen.values()) == min(count, 32) and max(seen.values()) == most


def test_tiles_with_little_to_generate_are_dropped() -> None:
    tile = np.zeros((10, 10), np.uint8)
    assert not tiles._worth_synthesizing(tile)
    tile[0, :5] = 1
    assert tiles._worth_synthesizing(tile)  # 95 %
    tile[0, 4] = 0
    assert not tiles._worth_synthesizing(tile)
    tile[:5] = 1
    tile[8:] = 255
    assert tiles._worth_synthesizing(tile)  # 20 % ignored
    tile[7, 0] = 255
    assert not tiles._worth_synthesizing(tile)
