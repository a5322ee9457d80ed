"""Tiles of an image: a grid of windows that covers every pixel."""
from typing import NamedTuple


class Window(NamedTuple):
    """A part of an image, in pixels.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
        seen_rows: Rows at the top that the window above covers too.
        seen_columns: Columns at the left that the window to the left covers too.
    """

    top: int
    left: int
    height: int
    width: int
    seen_rows: int = 0
    seen_columns: int = 0


def windows(size: tuple[int, int], tile_size: int | None, stride: int | None = None) -> list[Window]:
    """The tiles of an image, row by row.

    The last row and column are moved inwards so that they end at the edge: 6000 pixels in tiles of 512 are twelve
    tiles. An image smaller than a tile is one window, smaller than a tile.

    Args:
        size: Height and width.
        tile_size: Side of a tile; None for the whole image.
        stride: From one tile to the next; by default the side of a tile, so that they do not overlap.

    Raises:
        ValueError: If a number is out of range.
    """
    if tile_size is None:
        if stride is not None:
            raise ValueError(f'`stride` {stride} has no effect without `tile_size`; give both or neither.')
        return [Window(0, 0, *size)]
    stride = tile_size if stride is None else stride
    if tile_size < 1 or not 1 <= stride <= tile_size:
        raise ValueError(f'`stride` must be between 1 and `tile_size`, so that no pixel is left out; got stride '
                         f'{stride} and tile_size {tile_size}.')
    rows, columns = (_positions(length, tile_size, stride) for length in size)
    return [Window(top, left, min(tile_size, size[0]), min(tile_size, size[1]), seen_rows, seen_columns)
            for top, seen_rows in rows for left, seen_columns in columns]


def _positions(length: int, tile_size: int, stride: int) -> list[tuple[int, int]]:
    """Where tiles begin along one axis, and how many pixels of each the one before has covered."""
    if length <= tile_size:
        return [(0, 0)]
    starts = [*range(0, length - tile_size, stride), length - tile_size]
    return [(start, max(0, before + tile_size - start)) for before, start in zip([-tile_size, *starts], starts)]
