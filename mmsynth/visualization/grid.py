"""Grids of pictures side by side, such as mask, real image, synthetic image, critic's reading."""
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmsynth.utils.files import atomic_write, encode_png
from mmsynth.utils.labels import IGNORE_INDEX, check_labels

Color = Sequence[int]

GAP = 8  # pixels between tiles and around the grid
STRIP = 26  # height of the title strip and of a line of the legend
FONT_SIZE = 14
LABEL_WIDTH = 120
BACKGROUND = (242, 243, 245)  # not white: a class often is
BLANK = (226, 228, 231)
INK = (32, 32, 32)
_SCALES = {'nearest': Image.Resampling.NEAREST, 'smooth': Image.Resampling.LANCZOS}


def draw_grid(columns: Mapping[str, Sequence[np.ndarray | None]], *, tile_size: int = 160,
              row_labels: Sequence[str] | None = None, scale: str | Mapping[str, str] = 'nearest',
              legend: Sequence[tuple[str, Color]] = ()) -> np.ndarray:
    """Lay pictures out in titled columns. Each is scaled to fit its square tile and keeps its proportions.

    Args:
        columns: Title to pictures, as many in each; (H, W, 3) RGB or (H, W) grey, uint8; None leaves a blank.
        tile_size: Side of a tile in pixels.
        row_labels: One text per row, left of it.
        scale: 'nearest' (keeps colours; for masks) or 'smooth' (for photographs), or one of them per title; titles
            not named there take 'nearest'.
        legend: Names and colours below the grid.

    Returns:
        The grid (H', W', 3), uint8, RGB.

    Raises:
        ValueError: If an argument breaks its rule.
    """
    rows = _check_grid(columns, tile_size, row_labels)
    scales = {title: scale if isinstance(scale, str) else scale.get(title, 'nearest') for title in columns}
    unknown = [name for name in scales.values() if name not in _SCALES]
    if unknown:
        raise ValueError(f'`scale` must be one of {", ".join(_SCALES)}, got {unknown[0]!r}')
    left = GAP + (LABEL_WIDTH if row_labels is not None else 0)
    width = left + len(columns) * (tile_size + GAP)
    top = STRIP
    legend_lines = _break_legend(legend, width)
    canvas = Image.new('RGB', (width, top + rows * (tile_size + GAP) + len(legend_lines) * STRIP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, (title, cells) in enumerate(columns.items()):
        x = left + number * (tile_size + GAP)
        _draw_text(draw, title, (x, 0, tile_size, STRIP))
        for row, cell in enumerate(cells):
            canvas.paste(_tile(cell, tile_size, scales[title]), (x, top + row * (tile_size + GAP)))
    for row, label in enumerate(row_labels or ()):
        _draw_text(draw, label, (GAP, top + row * (tile_size + GAP), LABEL_WIDTH - GAP, tile_size))
    for number, line in enumerate(legend_lines):
        _draw_legend(draw, line, canvas.height - (len(legend_lines) - number) * STRIP)
    return np.asarray(canvas).copy()


def colorize(mask: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Colour a class map.

    Args:
        mask: (H, W), integer class indices; 255, unlabelled, becomes black.
        palette: One RGB colour in [0, 255] per class.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        ValueError: If a value is neither a class nor 255.
    """
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f'`mask` must be (H, W) of integers, got {mask.shape} {mask.dtype}')
    check_labels(mask, len(palette), '`mask`')
    colors = np.array([*palette, (0, 0, 0)], dtype=np.uint8)
    return colors[np.where(mask == IGNORE_INDEX, len(palette), mask)]


def save_png(image: np.ndarray, path: str | Path) -> None:
    """Write an image (H, W, 3) RGB or (H, W) grey, uint8, as PNG; the file is there in full or not at all."""
    atomic_write(path, encode_png(image))


def _check_grid(columns: Mapping[str, Sequence[np.ndarray | None]], tile_size: int,
                row_labels: Sequence[str] | None) -> int:
    """Number of rows, if the arguments agree on it."""
    lengths = {title: len(cells) for title, cells in columns.items()}
    if row_labels is not None:
        lengths['`row_labels`'] = len(row_labels)
    if not columns or len(set(lengths.values())) > 1:
        raise ValueError(f'`columns` and `row_labels` must be of one length, and at least one column, got {lengths}')
    if tile_size < 1:
        raise ValueError(f'`tile_size` must be positive, got {tile_size}')
    for title, cells in columns.items():
        for row, cell in enumerate(cells):
            if cell is not None and (cell.dtype != np.uint8 or not cell.size or cell.ndim not in (2, 3)
                                     or (cell.ndim == 3 and cell.shape[2] != 3)):
                raise ValueError(f'`columns` must hold (H, W, 3) or (H, W) uint8, got {cell.shape} {cell.dtype} in '
                                 f'{title!r}, row {row}')
    return next(iter(lengths.values()))


def _tile(cell: np.ndarray | None, size: int, scale: str) -> Image.Image:
    """The picture, centred on a square."""
    if cell is None:
        return Image.new('RGB', (size, size), BLANK)
    image = Image.fromarray(np.ascontiguousarray(cell)).convert('RGB')
    factor = size / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), _SCALES[scale])
    tile = Image.new('RGB', (size, size), BACKGROUND)
    tile.paste(image, ((size - width) // 2, (size - height) // 2))
    return tile


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: there on every machine, the same on each."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'), FONT_SIZE)


def _draw_text(draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int]) -> None:
    """Text at the left of a box (x, y, width, height), half way down; shortened until it fits."""
    x, y, width, height = box
    draw.text((x, y + height // 2), _shorten(' '.join(text.split()), width), fill=INK, font=_font(), anchor='lm')


def _shorten(text: str, width: int) -> str:
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f'{text}…') > width:
        text = text[:-1]
    return f'{text}…'


def _break_legend(legend: Sequence[tuple[str, Color]], width: int) -> list[list[tuple[int, str, Color]]]:
    """Put the entries into lines that fit: per line (x, name, colour)."""
    lines: list[list[tuple[int, str, Color]]] = []
    x = width
    for name, color in legend:
        name = _shorten(name, max(width - 2 * GAP - STRIP, STRIP))
        needed = STRIP + round(_font().getlength(name)) + GAP
        if not lines or x + needed > width:
            lines.append([])
            x = GAP
        lines[-1].append((x, name, color))
        x += needed + GAP
    return lines


def _draw_legend(draw: ImageDraw.ImageDraw, line: Sequence[tuple[int, str, Color]], y: int) -> None:
    side = STRIP - 12
    for x, name, color in line:
        draw.rectangle((x, y + 6, x + side, y + 6 + side), fill=tuple(int(part) for part in color), outline=INK)
        draw.text((x + STRIP - 4, y + STRIP // 2), name, fill=INK, font=_font(), anchor='lm')
