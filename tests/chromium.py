"""Opens pages in headless Chromium, spoken to in its DevTools protocol over a pair of pipes: no driver, no library.

Each message is one JSON object that ends with a zero byte (``--remote-debugging-pipe``). The browser's profile is a
folder of its own, and the browser is gone when the context is left.
"""
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
HOW_TO_INSTALL = 'no Chromium here: apt-get install chromium'
FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars',
         '--no-first-run', '--disable-extensions', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--mute-audio', '--remote-debugging-pipe')
SECONDS = 120  # on a busy machine the browser may take half a minute to start
PROBE = """(async () => {
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  const width = document.documentElement.clientWidth;
  const inBox = element => element.closest('[data-scroll], .table') !== null;
  const name = element => element.tagName.toLowerCase() + (element.className ? '.' + element.className : '') + ': '
    + (element.alt || element.textContent).trim().slice(0, 60);
  const texts = [...document.querySelectorAll('body *')].filter(
    element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  return {
    width: width, scrollWidth: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
    images: document.images.length,
    broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(name),
    stretched: [...document.images].filter(image => Math.abs(image.clientWidth / image.clientHeight
      - image.naturalWidth / image.naturalHeight) > 0.05 * image.naturalWidth / image.naturalHeight
      && getComputedStyle(image).objectFit === 'fill').map(name),
    outside: [...document.querySelectorAll('body *')].filter(element => !inBox(element)
      && element.getBoundingClientRect().right > width + 0.5).map(name),
    smallest: Math.min(...texts.map(element => parseFloat(getComputedStyle(element).fontSize))),
  };
})()"""


@dataclass
class PageProbe:
    """What a page is like at one width of the window.

    Attributes:
        errors: Of the console, of scripts, and of loading.
        requests: Addresses that were asked for, the page itself and ``data:`` left out.
        layout: What the probe in the page measured: ``width`` of the window and ``scrollWidth`` of the page, number of
            ``images``, those ``broken`` (no pixels) or ``stretched``, elements that reach ``outside`` of the window
            without a box that scrolls, and the ``smallest`` size of text, in CSS pixels.
        screenshot: PNG of the whole page.
    """

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    screenshot: bytes = b''

    def problems(self) -> list[str]:
        """All that is wrong, one line each."""
        layout = self.layout
        lines = [f'error: {text}' for text in self.errors] + [f'fetched: {url}' for url in self.requests]
        lines += [f'{kind}: {name}' for kind in ('broken', 'stretched', 'outside') for name in layout[kind]]
        if layout['scrollWidth'] > layout['width']:
            lines.append(f"the page is {layout['scrollWidth']} px wide in a window of {layout['width']} px")
        if layout['smallest'] is not None and layout['smallest'] < 12:
            lines.append(f"text of {layout['smallest']} px")
        return lines


class Chromium:
    """A running browser; made by :func:`open_chromium`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer, self._number = b'', 0
        self._events: list[dict[str, Any]] = []

    def probe(self, path: Path, width: int, *, height: int = 900, scale: float = 1) -> PageProbe:
        """Open a file in a new tab, ``width`` CSS pixels wide, and look at it once it has loaded."""
        with self.open(path.resolve().as_uri(), width, height=height, scale=scale) as tab:
            return tab.probe()

    @contextmanager
    def open(self, url: str, width: int, *, height: int = 900, scale: float = 1) -> 'Iterator[Tab]':
        """Open an address in a new tab, ``width`` CSS pixels wide; it has loaded when the block begins."""
        target = self._call('Target.createTarget', url='about:blank')['targetId']
        session = self._call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self._call(f'{domain}.enable', session)
        self._call('Emulation.setDeviceMetricsOverride', session, width=width, height=height, deviceScaleFactor=scale,
                   mobile=width < 600)
        self._events.clear()
        tab = Tab(self, session, url)
        with tab.loading():
            self._call('Page.navigate', session, url=url)
        yield tab
        self._call('Target.closeTarget', targetId=target)

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = dict(id=self._number, method=method, params=params) | (dict(sessionId=session) if session else {})
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self._to, data):]
        while True:
            response = self._receive()
            if response.get('id') == self._number:
                assert 'error' not in response, f'{method}: {response["error"]}'
                return response['result']
            self._events.append(response)

    def _wait_for(self, method: str, session: str) -> None:
        def arrived() -> bool:
            return any(event.get('method') == method and event.get('sessionId') == session for event in self._events)

        while not arrived():
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            assert ready, f'Chromium has been silent for {SECONDS} seconds'
            part = os.read(self._from, 1 << 20)
            assert part, 'Chromium has ended'
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)


class Tab:
    """An open page, to be looked at and worked with; made by :meth:`Chromium.open`."""

    def __init__(self, chromium: Chromium, session: str, url: str) -> None:
        self._chromium, self._session, self._url = chromium, session, url

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        response = self._chromium._call('Runtime.evaluate', self._session, expression=expression, awaitPromise=True,
                                        returnByValue=True)
        assert 'exceptionDetails' not in response, f'{expression}: {response["exceptionDetails"]}'
        return response['result'].get('value')

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + SECONDS
        while not self.evaluate(f'Boolean({expression})'):
            assert time.monotonic() < end, f'{expression} has not become true within {SECONDS} seconds'
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key and let it go, as a keyboard does."""
        text = dict(text=key) if len(key) == 1 else {}
        for kind in ('keyDown', 'keyUp'):
            self._chromium._call('Input.dispatchKeyEvent', self._session, type=kind, key=key,
                                 **(text if kind == 'keyDown' else {}))

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        x, y = self.evaluate(f"""(() => {{
          const element = document.querySelector({json.dumps(selector)});
          element.scrollIntoView({{block: 'center'}});
          const box = element.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ('mousePressed', 'mouseReleased'):
            self._chromium._call('Input.dispatchMouseEvent', self._session, type=kind, x=x, y=y, button='left',
                                 clickCount=1)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What is done in the block loads a page; it has loaded afterwards."""
        self._chromium._events[:] = [event for event in self._chromium._events
                                     if event.get('method') != 'Page.loadEventFired']
        yield
        self._chromium._wait_for('Page.loadEventFired', self._session)

    def reload(self) -> None:
        """Load the page again."""
        with self.loading():
            self._chromium._call('Page.reload', self._session)

    def probe(self) -> PageProbe:
        """What the page is like now, and what happened since it was opened."""
        page = PageProbe(layout=self.evaluate(PROBE))
        picture = self._chromium._call('Page.captureScreenshot', self._session, captureBeyondViewport=True)
        page.screenshot = base64.b64decode(picture['data'])
        for event in self._chromium._events:
            if event.get('sessionId') == self._session:
                _note(event, page, self._url)
        return page


def find_chromium() -> str | None:
    """The browser's path, None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_chromium(folder: Path) -> Iterator[Chromium]:
    """Start the browser with its profile in a folder, and end it on leaving."""
    browser = find_chromium()
    assert browser is not None, HOW_TO_INSTALL
    (its_read, our_write), (our_read, its_write) = os.pipe(), os.pipe()
    # The browser speaks on descriptors 3 and 4, which here may be anything; bash renames them.
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (its_read, its_write)]
    line = ['bash', '-c', f'exec "$@" 3<&{high[0]} 4>&{high[1]}', 'bash', browser, *FLAGS,
            f'--user-data-dir={folder / "profile"}', 'about:blank']
    log = open(folder / 'chromium.log', 'wb')
    process = subprocess.Popen(line, pass_fds=high, stdout=log, stderr=log, cwd=folder)
    for number in (its_read, its_write, *high):
        os.close(number)
    try:
        yield Chromium(our_write, our_read)
    finally:
        for number in (our_write, our_read):  # the browser ends when its pipe does
            os.close(number)
        log.close()
        _end(process)


def _end(process: subprocess.Popen) -> None:
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _note(event: dict[str, Any], page: PageProbe, own: str) -> None:
    """Add an event's error or request to the page's."""
    method, params = event.get('method'), event.get('params', {})
    if method == 'Runtime.exceptionThrown':
        page.errors.append(params['exceptionDetails'].get('exception', {}).get('description')
                           or params['exceptionDetails']['text'])
    elif method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'assert', 'warning'):
        page.errors.append(' '.join(str(value.get('value')) for value in params['args']))
    elif method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
        page.errors.append(params['entry']['text'])
    elif method == 'Network.requestWillBeSent' and not params['request']['url'].startswith(('data:', own)):
        page.requests.append(params['request']['url'])
