"""The report page: well-formed, complete, escaped, and nothing in it is fetched from anywhere."""
import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mmsynth.pool import Pool
from mmsynth.utils.files import encode_png
from mmsynth.visualization import Report, count_classes, pool_report

VOID = {'meta', 'link', 'img', 'br', 'hr'}
CLASSES, PALETTE = ('ground', 'house', 'water'), ((0, 0, 0), (255, 0, 0), (0, 0, 255))
GENERATOR = {'type': 'mmsynth.TODSynth', 'config_sha256': 'ab' * 32, 'weights_sha256': None}


class Page(HTMLParser):
    """What a page holds; fails on tags that do not nest."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.tables, self.images, self.urls, self.headings = [], [], [], [], [], []
        self.source = path.read_text(encoding='utf-8')
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.urls += [value for name, value in attrs if name in ('src', 'href', 'srcset', 'action', 'data')]
        if tag == 'table':
            self.tables.append([])
        if tag == 'tr':
            self.tables[-1].append([])
        if tag in ('td', 'th'):
            self.tables[-1][-1].append('')
        if tag in ('h1', 'h2'):
            self.headings.append('')
        if tag == 'img':
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ('td', 'th'):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] in ('h1', 'h2'):
            self.headings[-1] += data

    def assert_self_contained(self):
        assert all(url.startswith('data:') for url in self.urls)
        assert not {'script', 'iframe', 'object', 'embed'} & set(self.tags)
        assert not re.search(r'@import|url\(', self.source)
        assert 'prefers-color-scheme: dark' in self.source and 'width=device-width' in self.source


def fill(root, number=5, guided=True):
    rng = np.random.default_rng(0)
    with Pool.create(root, {'num_steps': 23, 'guidance': {'type': 'CRFM', 'trust': None}}, CLASSES, PALETTE) as pool:
        for index in range(number):
            mask = np.full((16, 24), 255, np.uint8)
            mask[:8] = index % 3
            trace = [{'step': step, 'loss_before': 2. - step, 'loss_after': float('nan')} for step in range(2)]
            pool.add(f'tile#{index}', rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), mask, source_mask='tile.png',
                     prompt='p', seed=index, generator=GENERATOR,
                     guidance={'name': 'CRFM', 'trace': trace} if guided else None,
                     filter={'kept': index > 0, 'ignored': {'water': 0.5}} if guided else None)
    return Pool.open(root)


def test_everything_added_is_on_the_page(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    report = Report('A <b>title</b>', {'mIoU': '0.5', 'runs & seeds': '3'})
    report.add_text('Text', 'one\n\ntwo <script>alert(1)</script>')
    report.add_table('Table', ['name', 'value', 'share'],
                     [['<i>x</i>', 1.23456, '3.1%'], ['y', None, '10%'], ['z', 12345, '']], note='a note')
    report.add_figure('Figure', image, 'what "it" shows')
    report.add_figure('Bytes', encode_png(image[..., 0]), 'grey')
    report.add_gallery('Gallery', [image, image], 'two', legend=[('house', (255, 0, 16))])
    report.write(tmp_path / 'report.html')
    page = Page(tmp_path / 'report.html')
    page.assert_self_contained()
    assert page.headings == ['A <b>title</b>', 'Text', 'Table', 'Figure', 'Bytes', 'Gallery']
    assert page.tables == [[['name', 'value', 'share'], ['<i>x</i>', '1.235', '3.1%'], ['y', '–', '10%'],
                            ['z', '12,345', '']]]
    assert base64.b64decode(page.images[0]['src'].split(',')[1]) == encode_png(image)
    assert [image['alt'] for image in page.images] == ['what "it" shows', 'grey', 'two', 'two']
    assert '#ff0010' in page.source and 'a note' in page.source and 'runs &amp; seeds' in page.source
    assert [path.name for path in tmp_path.iterdir()] == ['report.html']


def test_report_mistakes():
    report = Report('t', {})
    with pytest.raises(ValueError, match=r"`rows` of 'T' must have 2 values each, got \[1\]"):
        report.add_table('T', ['a', 'b'], [[1, 2], [1]])
    with pytest.raises(ValueError, match="image of 'F' must be an array or the bytes of a PNG, got b'GIF89a'"):
        report.add_figure('F', b'GIF89a', 'c')


def test_pool_report_tells_the_whole_story(tmp_path):
    pool = fill(tmp_path / 'pool')
    assert count_classes(pool) == [2 * 192, 2 * 192, 192]
    pool_report(pool, tmp_path / 'report.html', class_counts_before=[9040, 0, 0],
                judge_masks={'tile#0': np.zeros((16, 24), np.uint8)}, max_samples=4)
    page = Page(tmp_path / 'report.html')
    page.assert_self_contained()
    assert page.headings[1:] == ['Samples', 'Class balance', 'Class balance in numbers', 'Guidance',
                                 'Guidance in numbers', 'Filter rates', 'Where it came from']
    balance, guidance, filters, provenance = page.tables
    assert balance[1:] == [['ground', '9,040', '384', '100.0%', '94.2%', '0.9424'],
                           ['house', '0', '384', '0.0%', '3.8%', '–'], ['water', '0', '192', '0.0%', '1.9%', '–']]
    assert guidance == [['step', 'loss before'], ['0', '2'], ['1', '1']]
    assert filters[1:] == [['kept', '5', '0.8', '0', '1'], ['ignored.water', '5', '0.5', '0.5', '0.5']]
    assert ['num_steps', '23'] in provenance and ['guidance.trust', '–'] in provenance
    assert ['recorded generator: config_sha256', 'ab' * 32] in provenance
    assert '4 of 5 samples' in page.source


def test_pool_report_without_guidance_filter_or_real_counts(tmp_path):
    pool_report(fill(tmp_path / 'pool', guided=False), tmp_path / 'report.html', class_counts_before=None)
    page = Page(tmp_path / 'report.html')
    assert page.headings[1:] == ['Samples', 'Class balance', 'Class balance in numbers', 'Where it came from']
    assert page.tables[0][1] == ['ground', '384', '40.0%']


def test_pool_report_of_an_empty_pool(tmp_path):
    pool_report(fill(tmp_path / 'pool', 0), tmp_path / 'report.html', class_counts_before=[1, 1, 1])
    assert 'The pool is empty.' in Page(tmp_path / 'report.html').source


def test_pool_report_mistakes(tmp_path):
    pool = fill(tmp_path / 'pool', 1)
    with pytest.raises(ValueError, match=r'one count per class of the pool \(3\), got 2'):
        pool_report(pool, tmp_path / 'r.html', class_counts_before=[1, 2])
    with pytest.raises(ValueError, match='`max_samples` must not be negative, got -1'):
        pool_report(pool, tmp_path / 'r.html', class_counts_before=None, max_samples=-1)
