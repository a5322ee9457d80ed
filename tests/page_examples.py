"""The code blocks of README.md and docs/en, for tests that run them as they stand there."""
import re
from dataclasses import dataclass
from pathlib import Path

from small_run import ROOT

DOCS = ROOT / 'docs' / 'en'
PAGES = [ROOT / 'README.md', *sorted(DOCS.glob('*.md'))]
_BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_FILE = re.compile(r'# (\w+\.py)\n')


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: The page it stands on.
        line: The line of its opening fence, from 1.
        language: The word after the fence, or ''.
        text: What is between the fences.
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.page.name}:{self.line}'

    @property
    def file(self) -> str | None:
        """The file that the block is: of Python whose first line is ``# NAME.py``."""
        match = _FILE.match(self.text) if self.language == 'python' else None
        return match and match.group(1)


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding='utf-8')
    return [Block(page, text.count('\n', 0, match.start()) + 1, *match.groups()) for match in _BLOCK.finditer(text)]


def examples(start: str) -> list[Block]:
    """The Python blocks that begin so, on whatever page; those of equal text once. There must be one."""
    found = {block.text: block for page in PAGES for block in blocks(page)
             if block.language == 'python' and block.text.startswith(start)}
    assert found, f'no page has a Python block that begins with {start!r}'
    return list(found.values())


def files(page: Path) -> dict[str, str]:
    """The files that a page tells its reader to write, by name."""
    return {block.file: block.text for block in blocks(page) if block.file}
