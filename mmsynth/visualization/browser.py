"""A local page to leaf through a pool and to choose by hand what is trained on.

The server listens on this machine only. It knows three addresses: the page, the pictures of a sample (by the hash of
its id and the number of the picture, so no path comes from outside), and the marks. Web sites that are open in the same
browser cannot reach it: requests under another host name are refused, marks need the token that stands in the page,
and the page runs no script but its own.
"""
import json
import re
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from PIL import Image

from mmsynth.pool import PoolRecord
from mmsynth.pool.index import hash64
from mmsynth.visualization.pool_view import SHOWN, SORTS, Page, PoolView, Query
from mmsynth.visualization.report import css_colors, encode_tile, is_enlarged, render_template, tiles_per_line
from mmsynth.visualization.sample_cards import UNREADABLE, CardMaker, provenance

ADDRESS = '127.0.0.1'
_HOST = re.compile(r'(127\.0\.0\.1|localhost)(:[0-9]+)?')  # any port: it may be forwarded
_TILE = re.compile(r'/tile/([0-9a-f]{16})/([0-9])')
_LONGEST_BODY = 4096
_SECONDS = 30  # after which a silent connection is closed


class PoolServer(ThreadingHTTPServer):
    """Serves the page of one pool; ``serve_forever`` runs it, ``shutdown`` and ``server_close`` end it.

    Args:
        root: The pool's folder.
        port: Where to listen; 0 takes a free one.

    Attributes:
        url: The page's address.
        token: What marks must come with.

    Raises:
        ValueError: If it is no pool, or the port is out of range.
        OSError: If the port is taken.
    """

    daemon_threads = True

    def __init__(self, root: str | Path, port: int = 0) -> None:
        if not 0 <= port < 2**16:
            raise ValueError(f'`port` must be from 1 to 65535, or 0 for a free one, got {port}.')
        self.view = PoolView(root)
        self.token = secrets.token_urlsafe(32)
        self.lock = threading.Lock()  # of the view, which reads a large pool once, and of the list
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise OSError(f'`port` {port} of {ADDRESS} cannot be used ({error}); choose another, or 0 for a free '
                          'one.') from error
        self.url = f'http://{ADDRESS}:{self.server_address[1]}/'

    def page(self, values: dict[str, str], nonce: str) -> str:
        """The page that an address asks for.

        Raises:
            ValueError: If the address or the pool is wrong.
        """
        with self.lock:
            self.view.refresh()
            pool, cards = self.view.pool, self.view.cards
            page = self.view.page(Query.parse(values, len(pool.classes)))
            samples = [self._card(cards, record, count) for record, count in zip(page.records, page.counts)]
            total, kept, lines = self.view.totals
        number = len(cards.columns)
        return render_template(
            'browser.html.j2', title=f'Synthetic samples in {pool.root.resolve().name}', nonce=nonce, token=self.token,
            summary={'samples': f'{total:,}', 'kept': f'{kept:,}', 'with repeats': f'{lines:,}'},
            legend=css_colors(list(zip(pool.classes, pool.palette))), classes=pool.classes, sorts=SORTS, shown=SHOWN,
            query=page.query, found=page.found, pages=page.pages, links=_links(page), cards=samples, tiles=number,
            tiles_per_line=tiles_per_line(number))

    def _card(self, cards: CardMaker, record: PoolRecord, count: int) -> dict[str, Any]:
        """A sample for the template, its pictures as addresses."""
        key = f'{hash64(record.id):016x}'
        facts = cards.facts(record)
        tiles = [_tile(self.view.pool.root, record, column, f'tile/{key}/{number}')
                 for number, column in enumerate(cards.columns)]
        try:
            trace = self.view.pool.load_trace(record)
        except ValueError as error:
            trace, facts['facts'] = [], (*facts['facts'], str(error))
        return facts | dict(key=key, count=count, tiles=tiles,
                            facts=(*facts['facts'], *provenance(record, trace)))


class _Handler(BaseHTTPRequestHandler):
    server: PoolServer
    protocol_version = 'HTTP/1.1'
    timeout = _SECONDS

    def do_GET(self) -> None:  # noqa: N802
        """The page, or a picture."""
        address = urlsplit(self.path)
        if not self._is_local():
            return
        if address.path == '/':
            self._answer(lambda: self._page(dict(parse_qsl(address.query))))
        elif match := _TILE.fullmatch(address.path):
            self._answer(lambda: self._picture(int(match[1], 16), int(match[2])))
        else:
            self._send(HTTPStatus.NOT_FOUND, 'there is no such page; go to /')

    def do_POST(self) -> None:  # noqa: N802
        """A mark: JSON with the sample's ``key`` and whether to ``keep`` it."""
        self.close_connection = True  # what is refused has not been read
        length = self.headers.get('Content-Length', '')
        if not self._is_local():
            return
        if self.path != '/mark':
            self._send(HTTPStatus.NOT_FOUND, 'there is no such page; go to /')
        elif not secrets.compare_digest(self.headers.get('X-Token', '').encode(), self.server.token.encode()):
            self._send(HTTPStatus.FORBIDDEN, 'the token is not that of the page; load the page again')
        elif not (length.isascii() and length.isdigit() and int(length) <= _LONGEST_BODY):
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f'a mark must have from 0 to {_LONGEST_BODY} bytes')
        else:
            self._answer(lambda: self._mark(self.rfile.read(int(length))))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: errors are in the answers."""

    def _is_local(self) -> bool:
        """Whether the request names this machine; refuses it if not, such as a name of elsewhere that leads here."""
        host = self.headers.get('Host', '')
        if _HOST.fullmatch(host):
            return True
        self.close_connection = True
        self._send(HTTPStatus.FORBIDDEN, f'only http://{ADDRESS} and http://localhost are served, got {host!r:.80}')
        return False

    def _answer(self, make: Any) -> None:
        """Send what a function returns, or what went wrong in it."""
        try:
            found = make()
        except KeyError as error:
            self._send(HTTPStatus.NOT_FOUND, str(error.args[0]))
        except (ValueError, RuntimeError) as error:
            self._send(HTTPStatus.CONFLICT, str(error))
        except UNREADABLE as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f'{type(error).__name__}: {error}')
        else:
            self._send(HTTPStatus.OK, *found)

    def _page(self, values: dict[str, str]) -> tuple[str, str, str]:
        nonce = secrets.token_urlsafe(16)
        return self.server.page(values, nonce), 'text/html; charset=utf-8', f"'nonce-{nonce}'"

    def _picture(self, key: int, number: int) -> tuple[bytes, str]:
        view = self.server.view
        cards = view.cards
        record = view.find(key)
        column = cards.columns[number] if number < len(cards.columns) else None
        path = column and _file(record, column)
        if not (column and path) or (view.root / path).is_symlink():  # a link may lead out of the pool
            raise KeyError('there is no such picture; load the page again')
        data, kind = encode_tile(cards.tile(record, column))
        return data, f'image/{kind}'

    def _mark(self, body: bytes) -> tuple[bytes, str]:
        values = json.loads(body)
        if not (isinstance(values, dict) and values.keys() == {'key', 'keep'} and isinstance(values['keep'], bool)
                and isinstance(values['key'], str) and re.fullmatch('[0-9a-f]{16}', values['key'])):
            raise ValueError('a mark must be {"key": 16 hexadecimal digits, "keep": true or false}')
        with self.server.lock:
            count = self.server.view.mark(int(values['key'], 16), keep=values['keep'])
            _, kept, lines = self.server.view.totals
        return json.dumps(dict(count=count, kept=kept, lines=lines)).encode(), 'application/json'

    def _send(self, status: HTTPStatus, body: str | bytes, kind: str = 'text/plain; charset=utf-8',
              scripts: str = "'none'") -> None:
        data = body.encode('utf-8', 'replace') if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {
                'Content-Type': kind, 'Content-Length': str(len(data)), 'Cache-Control': 'no-store',
                'X-Content-Type-Options': 'nosniff', 'Cross-Origin-Resource-Policy': 'same-origin',
                'Referrer-Policy': 'no-referrer',
                'Content-Security-Policy': f"default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
                f"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
                f"script-src {scripts}"}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(data)


def _tile(root: Path, record: PoolRecord, column: str, url: str) -> dict[str, Any]:
    """A picture for the template; of its file only the size is read."""
    path, tile = _file(record, column), dict(title=column, note='none', url='', pixels=False)
    if path is None:
        return tile
    if (root / path).is_symlink():
        return tile | dict(note='a link to elsewhere')
    try:
        with Image.open(root / path) as file:
            return tile | dict(url=url, pixels=is_enlarged(column == 'synthetic', file.size))
    except UNREADABLE:
        return tile | dict(note='cannot be read')


def _file(record: PoolRecord, column: str) -> str | None:
    """The file of a picture, None where the sample has none."""
    found = record.filter or {}
    return {'mask': record.mask, 'synthetic': record.image, 'filtered label': found.get('label'),
            'weight': found.get('weight')}[column]


def _links(page: Page) -> dict[str, str]:
    """Addresses of the pages around; empty at the ends."""
    here = page.query.page
    numbers = dict(first=1, previous=here - 1, next=here + 1, last=page.pages)
    return {name: f'?{urlencode(page.query.fields(page=number))}' if 1 <= number <= page.pages and number != here
            else '' for name, number in numbers.items()}
