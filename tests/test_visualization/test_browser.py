"""The browser of a pool over HTTP and in headless Chromium: who is served, what a page shows, and what marks write."""
import http.client
import io
import json
import re
import runpy
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import HOW_TO_INSTALL, Chromium, Tab, find_chromium, open_chromium
from html_page import Page
from PIL import Image
from pool_samples import filter_entry, write_label, write_pool
from small_run import ROOT

from mmsynth.datasets import PoolDataset
from mmsynth.filtering.selection import Selection
from mmsynth.pool import Pool, file_name
from mmsynth.pool.index import hash64
from mmsynth.visualization import pool_view
from mmsynth.visualization.browser import PoolServer

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
in_browser = [pytest.mark.browser, pytest.mark.skipif(find_chromium() is None, reason=HOW_TO_INSTALL)]


def pool_of(root: Path, number: int = 5) -> Pool:
    """Samples of a filter and of guidance; s1 was dropped, and s2's mask is hard: listed three times."""
    pool = write_pool(root, [
        dict(filter=filter_entry(index, keep=index != 1, hardness=1. + index * (-1)**index), prompt=f'scene {index}',
             guidance=dict(name='CRFM', trace=[dict(step=0, loss_before=2.5), dict(step=1, loss_before=index / 8)]),
             mask_origin=dict(source='paste')) for index in range(number)])
    for index in range(number):
        write_label(pool, index)
    repeats = {file_name(f's{index}'): {1: 0, 2: 3}.get(index, 1) for index in range(number)}
    Selection(repeats, {}, {f's{index}': 3 if index == 2 else 1 for index in range(number)}).write(pool.root)
    return pool


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return pool_of(tmp_path / 'pool')


@contextmanager
def serving(root: Path) -> Iterator[PoolServer]:
    with PoolServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(pool: Pool) -> Iterator[PoolServer]:
    with serving(pool.root) as server:
        yield server


def lines(root: Path) -> list[str]:
    stems = {file_name(record.id): record.id for record in Pool.open(root).records}
    return [stems[line] for line in (root / 'selected.txt').read_text().splitlines()]


def get(server: PoolServer, path: str = '', **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers)) as response:
        return response.read()


def key_of(id: str) -> str:
    return f'{hash64(id):016x}'


def post(server: PoolServer, body: Any, token: str | None = None, path: str = 'mark', **headers: str) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {'X-Token': server.token if token is None else token} | headers
    with urllib.request.urlopen(urllib.request.Request(server.url + path, data, headers)) as response:
        return json.loads(response.read())


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(*arguments, **options)
    return caught.value.code, caught.value.read().decode()


# ---- the page


def test_the_page_shows_what_is_recorded(server: PoolServer, tmp_path: Path) -> None:
    (tmp_path / 'page.html').write_bytes(get(server))
    page = Page(tmp_path / 'page.html')
    assert len(page.cards) == 5 and page.captions[:3] == ['mask', 'synthetic', 'filtered label']
    text = [' '.join(' '.join(card).split()) for card in page.cards]
    assert text[1].startswith('keep drop s1 dropped 38 % valid, below 80 %')
    for part in ('× 3', 's2', 'kept', 'hardness 3.00', 'mask: paste', '“scene 2”', 'CRFM: loss 2.500 → 0.250',
                 'not trusted: water 25.0%', 'made of tile.png', 'seed 2'):
        assert part in text[2]
    assert not [url for url in page.urls if not re.match(r'data:|tile/[0-9a-f]{16}/\d$|\?', url)]
    assert not re.search(r'https?:|//[a-z]|@import|url\(', page.source)


def test_pictures_are_those_of_the_pool(server: PoolServer, pool: Pool) -> None:
    record = pool.records[2]
    files = [io.BytesIO(get(server, f'tile/{key_of("s2")}/{number}')) for number in (0, 1, 2)]
    tiles = [np.asarray(Image.open(file)) for file in files]
    assert tiles[0][0, 0].tolist() == [0, 0, 255] and tiles[0][12, 0].tolist() == [0, 0, 0]
    assert (tiles[1] == pool.load_image(record)).all()
    assert tiles[2][0, 0].tolist() == [0, 0, 0] and tiles[2][4, 0].tolist() == [0, 0, 255]


def test_order_filter_and_pages_of_the_address(server: PoolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_view, 'PAGE', 2)

    def ids(query: str) -> list[str]:
        return re.findall('<h3>(.*?)</h3>', get(server, query).decode())

    assert ids('') == ['s0', 's1'] and ids('?page=3') == ['s4']
    assert ids('?sort=hardness&down=1') == ['s4', 's2'] and ids('?has=1') == ['s1', 's4']
    assert ids('?show=dropped') == ['s1'] and ids('?show=dropped&has=0') == []
    page = get(server, '?sort=hardness&down=1&page=2').decode()
    links = dict(re.findall(r'<a id="(\w+)" href="(.*?)"', page))
    assert {name: ids(link.replace('&amp;', '&')) for name, link in links.items()} == {
        'first': ['s4', 's2'], 'previous': ['s4', 's2'], 'next': ['s3'], 'last': ['s3']}
    assert refusal(get, server, '?sort=colour')[1].startswith('`sort` must be one of')


def test_damaged_samples_say_so(server: PoolServer, pool: Pool, tmp_path: Path) -> None:
    (pool.root / pool.records[0].image).write_bytes(b'torn')
    (tmp_path / 'page.html').write_bytes(get(server))
    assert Page(tmp_path / 'page.html').blanks == ['cannot be read']


# ---- who is served


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:80', '127.0.0.1.evil.example', '', 'localhost:80@evil'])
def test_other_host_names_are_refused(server: PoolServer, host: str) -> None:
    code, message = refusal(get, server, Host=host)
    assert code == 403 and 'only http://127.0.0.1' in message
    assert refusal(post, server, dict(key='0' * 16, keep=False), Host=host)[0] == 403


def test_this_machine_is_served_also_through_a_forwarded_port(server: PoolServer) -> None:
    for host in ('localhost', '127.0.0.1:9000'):
        assert b'<h1>' in get(server, Host=host)
    assert server.server_address[0] == '127.0.0.1'


def test_headers_keep_other_sites_out(server: PoolServer) -> None:
    with urllib.request.urlopen(server.url) as response:
        policy = response.headers['Content-Security-Policy']
        nonce = re.search(r'<script nonce="(.*?)">', response.read().decode()).group(1)
        assert "default-src 'none'" in policy and f"script-src 'nonce-{nonce}'" in policy
        assert response.headers['Cross-Origin-Resource-Policy'] == 'same-origin'
        assert 'Access-Control-Allow-Origin' not in response.headers


@pytest.mark.parametrize('path', ['manifest.jsonl', '../secret.png', 'tile/../../secret.png', 'tile/%2e%2e/0',
                                  'tile/0000000000000000/0', 'img_dir/', 'tile/KEY/9', 'tile/KEY/1/../1'])
def test_paths_do_not_leave_the_pool(server: PoolServer, pool: Pool, path: str) -> None:
    Image.new('RGB', (4, 4)).save(pool.root.parent / 'secret.png')
    connection = http.client.HTTPConnection(*server.server_address)  # urllib would shorten the path
    connection.request('GET', '/' + path.replace('KEY', key_of('s0')))
    assert connection.getresponse().status == 404
    connection.close()


def test_links_that_lead_out_of_the_pool_are_not_followed(server: PoolServer, pool: Pool, tmp_path: Path) -> None:
    Image.new('RGB', (24, 16)).save(tmp_path / 'secret.png')
    image = pool.root / pool.records[0].image
    image.unlink()
    image.symlink_to(tmp_path / 'secret.png')
    assert refusal(get, server, f'tile/{key_of("s0")}/1')[0] == 404
    (tmp_path / 'page.html').write_bytes(get(server))
    assert Page(tmp_path / 'page.html').blanks == ['a link to elsewhere']


def test_texts_from_the_manifest_are_escaped(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / 'pool', [dict(prompt='<script>alert(1)</script>')], ('<b>', 'house', 'water'))
    with serving(pool.root) as server:
        text = get(server).decode()
    assert '<script>alert' not in text and '<b>' not in text and '&lt;script&gt;alert' in text


# ---- marks


def test_marks_are_written_and_trained_on(server: PoolServer, pool: Pool) -> None:
    before = (pool.root / 'selected.txt').read_bytes()
    assert lines(pool.root) == ['s0', 's2', 's2', 's2', 's3', 's4']
    assert post(server, dict(key=key_of('s0'), keep=False)) == dict(count=0, kept=3, lines=5)
    assert post(server, dict(key=key_of('s1'), keep=True)) == dict(count=1, kept=4, lines=6)
    assert lines(pool.root) == ['s1', 's2', 's2', 's2', 's3', 's4']
    dataset = PoolDataset(str(pool.root), PIPELINE, ann_file='selected.txt')
    assert [dataset.get_data_info(index)['sample_id'] for index in range(len(dataset))] == lines(pool.root)
    assert dataset[1]['data_samples'].gt_sem_seg.data[0, 4, 0] == 2  # the label after the filter
    post(server, dict(key=key_of('s2'), keep=False))
    post(server, dict(key=key_of('s2'), keep=True))
    post(server, dict(key=key_of('s1'), keep=False))
    post(server, dict(key=key_of('s0'), keep=True))
    assert (pool.root / 'selected.txt').read_bytes() == before


def test_many_marks_at_once_are_all_written(server: PoolServer, pool: Pool) -> None:
    keys = {id: key_of(id) for id in ('s0', 's2', 's3')}
    threads = [threading.Thread(target=post, args=(server, dict(key=key, keep=False))) for key in keys.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines(pool.root) == ['s4']
    code, message = refusal(post, server, dict(key=key_of('s4'), keep=False))
    assert code == 409 and 'would be left' in message and lines(pool.root) == ['s4']


@pytest.mark.parametrize('body, options, code, message', [
    ({}, dict(token='wrong'), 403, 'token'),
    ({}, dict(token=''), 403, 'token'),
    ({}, dict(path='elsewhere'), 404, 'no such page'),
    (b'{', {}, 409, 'Expecting'),
    (dict(key='0' * 16), {}, 409, 'a mark must be'),
    (dict(key='../../../secret', keep=True), {}, 409, 'a mark must be'),
    (dict(key='0' * 16, keep=1), {}, 409, 'a mark must be'),
    (dict(key='0' * 16, keep=True), {}, 404, 'no such sample'),
    (b' ' * 5000, {}, 413, 'bytes'),
])
def test_wrong_marks_are_refused(server: PoolServer, pool: Pool, body: Any, options: dict[str, str], code: int,
                                 message: str) -> None:
    before = (pool.root / 'selected.txt').read_bytes()
    found = refusal(post, server, body, **options)
    assert found[0] == code and message in found[1]
    assert (pool.root / 'selected.txt').read_bytes() == before


def test_a_pool_that_is_written_is_not_marked(server: PoolServer, pool: Pool) -> None:
    with Pool.resume(pool.root):
        code, message = refusal(post, server, dict(key=key_of('s0'), keep=False))
    assert code == 409 and 'is being written by process' in message and len(lines(pool.root)) == 6


def test_mistakes_of_the_start(server: PoolServer, pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is not a pool'):
        PoolServer(tmp_path)
    with pytest.raises(ValueError, match='`port` must be from 1 to 65535'):
        PoolServer(pool.root, 70000)
    with pytest.raises(OSError, match=f'`port` {server.server_address[1]} .* cannot be used'):
        PoolServer(pool.root, server.server_address[1])


def test_the_tool(pool: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    opened: list[str] = []
    monkeypatch.setattr('webbrowser.open', opened.append)
    monkeypatch.setattr(PoolServer, 'serve_forever', lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    for options in ([], ['--no-open']):
        monkeypatch.setattr(sys, 'argv', ['browse_pool.py', str(pool.root), *options])
        runpy.run_path(str(ROOT / 'tools' / 'browse_pool.py'), run_name='__main__')
        assert re.search(r'5 samples of .*pool: http://127\.0\.0\.1:\d+/ ', capsys.readouterr().out)
    assert len(opened) == 1 and opened[0].startswith('http://127.0.0.1:')


# ---- in the browser


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with open_chromium(tmp_path_factory.mktemp('chromium')) as chromium:
        yield chromium


def titles(tab: Tab, selector: str = '.card') -> list[str]:
    return tab.evaluate(f'[...document.querySelectorAll("{selector} h3")].map(element => element.textContent)')


def summary(tab: Tab) -> list[str]:
    return tab.evaluate('[...document.querySelectorAll(".summary dd")].map(element => element.textContent)')


class TestInBrowser:
    pytestmark = in_browser

    @pytest.mark.parametrize('width', [1280, 390])
    def test_it_looks_right(self, browser: Chromium, server: PoolServer, width: int) -> None:
        with browser.open(server.url, width) as tab:
            page = tab.probe()
        assert page.problems() == [] and page.layout['images'] == 15  # what is fetched is of this server

    def test_keys_mark_and_a_reload_keeps(self, browser: Chromium, server: PoolServer, pool: Pool) -> None:
        with browser.open(server.url, 1280) as tab:
            tab.press('d')  # the first card, and on to the second
            tab.press('k')
            tab.press('ArrowRight')
            tab.press('D')
            tab.wait_for(f'document.querySelector("#s{key_of("s3")}.out")')
            assert titles(tab, '.card:focus') == ['s4'] and titles(tab, '.card.out') == ['s0', 's3']
            assert lines(pool.root) == ['s1', 's2', 's2', 's2', 's4'] and summary(tab) == ['5', '3', '5']
            tab.reload()
            assert titles(tab, '.card.out') == ['s0', 's3'] and summary(tab) == ['5', '3', '5']
            assert tab.probe().errors == []

    def test_clicks_mark_and_repeats_come_back(self, browser: Chromium, server: PoolServer, pool: Pool) -> None:
        card = f'#s{key_of("s2")}'
        with browser.open(server.url, 1280) as tab:
            assert tab.evaluate(f'document.querySelector("{card} .times").textContent') == '× 3'
            tab.click(f'{card} .drop')
            tab.wait_for(f'document.querySelector("{card}.out .drop[aria-pressed=true]")')
            assert lines(pool.root) == ['s0', 's3', 's4']
            assert tab.evaluate(f'document.querySelector("{card} .times").textContent') == ''
            tab.reload()
            tab.click(f'{card} .keep')
            tab.wait_for(f'document.querySelector("{card}:not(.out) .keep[aria-pressed=true]")')
            assert tab.evaluate(f'document.querySelector("{card} .times").textContent') == '× 3'
        assert lines(pool.root) == ['s0', 's2', 's2', 's2', 's3', 's4']

    def test_sorting_and_pages(self, browser: Chromium, server: PoolServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_view, 'PAGE', 2)

        def choose(name: str, value: str) -> None:
            with tab.loading():
                tab.evaluate(f"""(() => {{
                  const select = document.querySelector('[name={name}]');
                  select.value = '{value}';
                  select.dispatchEvent(new Event('change', {{bubbles: true}}));
                }})()""")

        with browser.open(server.url, 1280) as tab:
            choose('sort', 'hardness')
            choose('down', '1')
            assert titles(tab) == ['s4', 's2'] and tab.evaluate('location.search').startswith('?sort=hardness&down=1')
            with tab.loading():
                tab.press('n')
            assert titles(tab) == ['s0', 's1']
            with tab.loading():
                tab.press('p')
            choose('sort', 'share')
            choose('of', '2')
            assert titles(tab) == ['s2', 's0']
            choose('has', '1')
            assert titles(tab) == ['s1', 's4'] and tab.probe().errors == []

    def test_what_is_refused_is_said(self, browser: Chromium, server: PoolServer, pool: Pool) -> None:
        with browser.open(server.url, 1280) as tab, Pool.resume(pool.root):
            tab.press('d')
            tab.wait_for('document.getElementById("status").textContent')
            assert 'is being written by process' in tab.evaluate('document.getElementById("status").textContent')
            assert titles(tab, '.card.out') == ['s1']

    def test_a_page_of_elsewhere_cannot_mark(self, browser: Chromium, server: PoolServer, pool: Pool,
                                             tmp_path: Path) -> None:
        (tmp_path / 'evil.html').write_text('<!DOCTYPE html><link rel="icon" href="data:,"><p>text')
        before, mark = (pool.root / 'selected.txt').read_bytes(), json.dumps(dict(key=key_of('s0'), keep=False))
        with browser.open((tmp_path / 'evil.html').as_uri(), 1280) as tab:
            for options in ('mode: "no-cors"', f'headers: {{"X-Token": "{server.token}"}}'):
                tab.evaluate(f'fetch("{server.url}mark", {{method: "POST", body: {mark!r}, {options}}}).catch(() => 0)')
            assert tab.evaluate(f'fetch("{server.url}").then(() => "read", () => "refused")') == 'refused'
        assert (pool.root / 'selected.txt').read_bytes() == before
