"""A report as one HTML file: images inside, no script, nothing fetched from anywhere."""
import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, UnidentifiedImageError

from mmsynth.utils.files import atomic_write, encode_png

_TEMPLATES = Path(__file__).parent / 'templates'
_PERCENTAGE = re.compile(r'[-+]?[0-9.]+(e-?[0-9]+)?%')
_PIXELS_PER_INCH = 128  # of the page, for pictures that say how large they are, as plots do
_TILE_SIDE = 320  # pixels that a tile holds at most: sharp on screens of twice the usual density
_SHOWN_SIDE = 180  # CSS pixels of a tile on a wide page; smaller pictures are enlarged without smoothing
_JPEG_QUALITY = 90
_TILES_PER_LINE = {4: 2, 5: 3, 6: 3}  # on a phone; by default all
MARKS = ('', 'kept', 'dropped')


@dataclass(frozen=True)
class Tile:
    """One picture of a sample.

    Attributes:
        title: What it shows.
        image: (H, W, 3) RGB or (H, W) grey, uint8; None leaves a blank.
        photo: Whether it may be resampled smoothly and stored with loss where it is too large; masks may not.
        note: Stands in the blank.
    """
    title: str
    image: np.ndarray | None
    photo: bool = False
    note: str = ''


@dataclass(frozen=True)
class SampleCard:
    """What the page shows of one sample: its pictures beside each other, and lines of text.

    Attributes:
        title: Its name.
        tiles: Its pictures; as many for each sample of one gallery.
        facts: Lines of text.
        mark: 'kept', 'dropped' or ''.
        reason: Why it has the mark.

    Raises:
        ValueError: If ``mark`` is another word.
    """
    title: str
    tiles: tuple[Tile, ...]
    facts: tuple[str, ...] = ()
    mark: str = ''
    reason: str = ''

    def __post_init__(self) -> None:
        if self.mark not in MARKS:
            raise ValueError(f'`mark` must be one of {", ".join(map(repr, MARKS))}, got {self.mark!r}')


@dataclass
class _Block:
    """One thing in a section; the template shows what is filled."""
    text: str = ''
    columns: list[str] = field(default_factory=list)
    rows: list[list['_Cell']] = field(default_factory=list)
    images: list['_Picture'] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)
    tiles: int = 0
    tiles_per_line: int = 0
    legend: list[tuple[str, str]] = field(default_factory=list)
    note: str = ''


@dataclass
class _Section:
    heading: str
    blocks: list[_Block]


@dataclass(frozen=True)
class _Cell:
    text: str
    numeric: bool


@dataclass(frozen=True)
class _Picture:
    url: str
    width: int


class Report:
    """Collects sections and writes them as one page. All text is escaped.

    What is added without a heading belongs to the section before, and stands beside what is there if both fit into
    the window.

    Args:
        title: The page's title.
        summary: The few numbers people came for, name to value.
    """

    def __init__(self, title: str, summary: Mapping[str, str]) -> None:
        self.title = title
        self.summary = dict(summary)
        self._sections: list[_Section] = []

    def add_text(self, heading: str, text: str) -> None:
        """Add paragraphs, separated by empty lines."""
        self._add(heading, _Block(text=text))

    def add_table(self, heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]],
                  note: str | None = None) -> None:
        """Add a table.

        Args:
            heading: The section's heading.
            columns: Heads of the columns.
            rows: One value per column; floats are shown with four digits, None as a dash.
            note: A line below.

        Raises:
            ValueError: If a row has another length than ``columns``.
        """
        wrong = [row for row in rows if len(row) != len(columns)]
        if wrong:
            raise ValueError(f'`rows` of {heading!r} must have {len(columns)} values each, got {list(wrong[0])!r:.80}')
        self._add(heading, _Block(columns=[str(name) for name in columns],
                                  rows=[[_cell(value) for value in row] for row in rows], note=note or ''))

    def add_figure(self, heading: str, image: np.ndarray | bytes, caption: str) -> None:
        """Add one picture.

        Args:
            heading: The section's heading.
            image: (H, W, 3) RGB or (H, W) grey, uint8; or the bytes of a PNG.
            caption: Says what is to be seen; also the text for those who do not see it.

        Raises:
            ValueError: If bytes are not a PNG.
        """
        self.add_gallery(heading, [image], caption)

    def add_gallery(self, heading: str, images: Sequence[np.ndarray | bytes], caption: str, *,
                    legend: Sequence[tuple[str, Sequence[int]]] = ()) -> None:
        """Add pictures beside each other, as many per line as fit into the window.

        Args:
            heading: The section's heading.
            images: As in :meth:`add_figure`.
            caption: As in :meth:`add_figure`, for all of them.
            legend: Names and RGB colours.

        Raises:
            ValueError: If bytes are not a PNG.
        """
        self._add(heading, _Block(images=[_picture(image, heading) for image in images], legend=css_colors(legend),
                                  note=caption))

    def add_samples(self, heading: str, samples: Sequence[SampleCard], caption: str, *,
                    legend: Sequence[tuple[str, Sequence[int]]] = ()) -> None:
        """Add samples, each with its pictures in a line and its facts beside or below them.

        Args:
            heading: The section's heading.
            samples: At least one, all with the same number of tiles.
            caption: A line below all of them.
            legend: Names and RGB colours.

        Raises:
            ValueError: If there is no sample, or they differ in the number of tiles.
        """
        counts = {len(sample.tiles) for sample in samples}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f'`samples` of {heading!r} must have the same number of tiles, at least one, got '
                             f'{sorted(counts)}')
        number = counts.pop()
        cards = [dict(title=sample.title, facts=sample.facts, mark=sample.mark, reason=sample.reason,
                      tiles=[_tile_values(tile) for tile in sample.tiles]) for sample in samples]
        self._add(heading, _Block(cards=cards, tiles=number, tiles_per_line=tiles_per_line(number),
                                  legend=css_colors(legend), note=caption))

    def render(self) -> str:
        """The page as text."""
        return render_template('report.html.j2', title=self.title, summary=self.summary, sections=self._sections)

    def write(self, path: str | Path) -> None:
        """Write the page; the file is there in full or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        atomic_write(path, self.render().encode('utf-8'))

    def _add(self, heading: str, block: _Block) -> None:
        if heading or not self._sections:
            self._sections.append(_Section(heading, []))
        self._sections[-1].blocks.append(block)


def render_template(name: str, **values: Any) -> str:
    """One of the templates as text; what is filled in is escaped."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name).render(values)


def css_colors(legend: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, str]]:
    """Names with their RGB colours as CSS has them."""
    return [(name, '#{:02x}{:02x}{:02x}'.format(*(int(part) for part in color))) for name, color in legend]


def tiles_per_line(number: int) -> int:
    """How many of a card's tiles stand in a line on a phone."""
    return _TILES_PER_LINE.get(number, number)


def _cell(value: Any) -> _Cell:
    if value is None:
        return _Cell('–', numeric=True)
    if isinstance(value, (float, np.floating)):
        return _Cell(f'{value:.4g}', numeric=True)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return _Cell(f'{value:,}', numeric=True)
    return _Cell(str(value), numeric=_PERCENTAGE.fullmatch(str(value)) is not None)


def _picture(image: np.ndarray | bytes, heading: str) -> _Picture:
    data = image if isinstance(image, bytes) else encode_png(image)
    try:
        with Image.open(io.BytesIO(data), formats=('PNG',)) as file:
            width, dots_per_inch = file.width, file.info.get('dpi', (_PIXELS_PER_INCH, ))[0]
    except UnidentifiedImageError as error:
        raise ValueError(f'the image of {heading!r} must be an array or the bytes of a PNG, got '
                         f'{data[:8]!r}') from error
    return _Picture(_data_url(data, 'png'), round(width * _PIXELS_PER_INCH / dots_per_inch))


def _tile_values(tile: Tile) -> dict[str, Any]:
    """A tile for the template."""
    if tile.image is None:
        return dict(title=tile.title, note=tile.note, url='', pixels=False)
    return dict(title=tile.title, note='', url=_data_url(*encode_tile(tile)),
                pixels=is_enlarged(tile.photo, tile.image.shape[:2]))


def is_enlarged(photo: bool, size: tuple[int, int]) -> bool:
    """Whether the page enlarges a picture without smoothing: masks always, photographs if they are small."""
    return not photo or max(size) < _SHOWN_SIDE


def encode_tile(tile: Tile) -> tuple[bytes, str]:
    """The picture of a tile, made smaller where it is too large, as a file; and that file's kind, 'png' or 'jpeg'."""
    assert tile.image is not None
    factor = min(_TILE_SIDE / max(tile.image.shape[:2]), 1)
    if factor == 1:
        return encode_png(tile.image), 'png'
    height, width = (max(1, round(side * factor)) for side in tile.image.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(tile.image))
    if not tile.photo:
        return encode_png(np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))), 'png'
    buffer = io.BytesIO()
    picture.convert('RGB').resize((width, height), Image.Resampling.LANCZOS).save(
        buffer, format='JPEG', quality=_JPEG_QUALITY)
    return buffer.getvalue(), 'jpeg'


def _data_url(data: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}'
