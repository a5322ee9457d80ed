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


@dataclass
class _Section:
    """One block of the page; the template shows what is filled."""
    heading: str
    text: str = ''
    columns: list[str] = field(default_factory=list)
    rows: list[list['_Cell']] = field(default_factory=list)
    images: list['_Picture'] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    note: str = ''


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
        self._sections.append(_Section(heading, text=text))

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
        self._sections.append(_Section(heading, columns=[str(name) for name in columns],
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
        """Add pictures beside each other, as many per line as the window has room for.

        Args:
            heading: The section's heading.
            images: As in :meth:`add_figure`.
            caption: As in :meth:`add_figure`, for all of them.
            legend: Names and RGB colours.

        Raises:
            ValueError: If bytes are not a PNG.
        """
        colors = [(name, '#{:02x}{:02x}{:02x}'.format(*(int(part) for part in color))) for name, color in legend]
        self._sections.append(_Section(heading, images=[_picture(image, heading) for image in images], legend=colors,
                                       note=caption))

    def render(self) -> str:
        """The page as text."""
        environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
                                  trim_blocks=True, lstrip_blocks=True)
        template = environment.get_template('report.html.j2')
        return template.render(title=self.title, summary=self.summary, sections=self._sections)

    def write(self, path: str | Path) -> None:
        """Write the page; the file is there in full or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        atomic_write(path, self.render().encode('utf-8'))


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
    url = f'data:image/png;base64,{base64.b64encode(data).decode("ascii")}'
    return _Picture(url, round(width * _PIXELS_PER_INCH / dots_per_inch))
