"""Reads a page as a browser would: well-formed, with its headings, tables, cards and pictures as lists."""
import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {'meta', 'link', 'img', 'br', 'hr', 'input'}


class Page(HTMLParser):
    """What a page holds; fails on tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.tables, self.images, self.urls, self.headings = [], [], [], [], [], []
        self.cards, self.blanks, self.captions = [], [], []
        self.source = path.read_text(encoding='utf-8')
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get('class', '')))
        self.urls += [value for name, value in attrs if name in ('src', 'href', 'srcset', 'action', 'data')]
        if tag == 'table':
            self.tables.append([])
        if tag == 'tr':
            self.tables[-1].append([])
        if tag in ('td', 'th'):
            self.tables[-1][-1].append('')
        if tag in ('h1', 'h2'):
            self.headings.append('')
        if tag == 'figcaption':
            self.captions.append('')
        if tag == 'article':
            self.cards.append([])
        if tag == 'img':
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, kind = self.open[-1] if self.open else ('', '')
        if tag in ('td', 'th'):
            self.tables[-1][-1][-1] += data
        if tag in ('h1', 'h2'):
            self.headings[-1] += data
        if tag == 'figcaption':
            self.captions[-1] += data
        if kind == 'blank':
            self.blanks.append(data)
        if data.strip() and any(name == 'facts' for _, name in self.open):
            self.cards[-1].append(data)

    def assert_self_contained(self) -> None:
        assert all(url.startswith('data:') for url in self.urls)
        assert not {'script', 'iframe', 'object', 'embed'} & set(self.tags)
        assert not re.search(r'@import|url\(', self.source)
        assert 'width=device-width' in self.source
