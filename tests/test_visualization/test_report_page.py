"""The report page: well-formed, complete, escaped, and nothing in it is fetched from anywhere."""
import base64
import io

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from mmsynth.utils.files import encode_png
from mmsynth.visualization import Report
from mmsynth.visualization.report import SampleCard, Tile


def decode(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image['src'].split(',')[1]))))


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
    assert 'prefers-color-scheme: dark' in page.source
    assert '#ff0010' in page.source and 'a note' in page.source and 'runs &amp; seeds' in page.source
    assert [path.name for path in tmp_path.iterdir()] == ['report.html']


def test_report_mistakes():
    report = Report('t', {})
    with pytest.raises(ValueError, match=r"`rows` of 'T' .* got \[1\]"):
        report.add_table('T', ['a', 'b'], [[1, 2], [1]])
    with pytest.raises(ValueError, match="image of 'F' .* got b'GIF89a'"):
        report.add_figure('F', b'GIF89a', 'c')


def test_what_has_no_heading_joins_the_section_before(tmp_path):
    report = Report('t', {})
    report.add_text('', 'first')
    report.add_table('Table', ['a'], [[1]])
    report.add_text('', 'beside it')
    report.write(tmp_path / 'report.html')
    page = Page(tmp_path / 'report.html')
    assert page.headings == ['t', 'Table'] and page.tags.count('section') == 2
    assert page.source.index('first') < page.source.index('Table') < page.source.index('beside it')


def test_samples_are_cards_with_pictures_blanks_and_facts(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    tiles = (Tile('mask', mask), Tile('reference', None, note='none'))
    card = SampleCard('<s>', tiles, ('a fact', 'b'), 'dropped', 'why')
    report = Report('t', {})
    report.add_samples('Samples', [card, card], 'two', legend=[('house', (255, 0, 16))])
    report.write(tmp_path / 'report.html')
    page = Page(tmp_path / 'report.html')
    page.assert_self_contained()
    assert page.cards == [['<s>', 'dropped', 'why', 'a fact', 'b']] * 2 and page.blanks == ['none'] * 2
    assert page.captions == ['mask', 'reference'] * 2 and '#ff0010' in page.source
    assert page.images[0]['alt'] == 'mask, <s>' and page.images[0]['class'] == 'pixels'
    np.testing.assert_array_equal(decode(page.images[0]), mask)


def test_large_tiles_are_reduced_and_masks_keep_their_colours(tmp_path):
    stripes = np.zeros((960, 480, 3), np.uint8)
    stripes[::2] = 255
    report = Report('t', {})
    report.add_samples('Samples', [SampleCard('s', (Tile('mask', stripes), Tile('photo', stripes, photo=True)))], 'c')
    report.write(tmp_path / 'report.html')
    mask, photo = Page(tmp_path / 'report.html').images
    assert decode(mask).shape == decode(photo).shape == (320, 160, 3)
    assert set(np.unique(decode(mask))) <= {0, 255}
    assert 60 < decode(photo).mean() < 200 and decode(photo).std() < 40  # the stripes are averaged
    assert mask['class'] == 'pixels' and 'class' not in photo and photo['src'].startswith('data:image/jpeg')


def test_sample_mistakes():
    card = SampleCard('s', (Tile('mask', None),))
    with pytest.raises(ValueError, match=r"`samples` of 'S' .* got \[1, 2\]"):
        Report('t', {}).add_samples('S', [card, SampleCard('s', card.tiles * 2)], 'c')
    with pytest.raises(ValueError, match='at least one, got \\[\\]'):
        Report('t', {}).add_samples('S', [], 'c')
    with pytest.raises(ValueError, match="`mark`.* got 'good'"):
        SampleCard('s', card.tiles, mark='good')
