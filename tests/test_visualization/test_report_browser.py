"""The report in headless Chromium, as on a desktop and on a phone: nothing in the console, nothing fetched, every
picture there, nothing wider than the window. Skipped where no Chromium is installed; .ci/run installs it.
"""
import base64

import numpy as np
import pytest
from chromium import HOW_TO_INSTALL, find_chromium, open_chromium
from PIL import Image
from pool_samples import filter_entry, write_label, write_pool

from mmsynth.utils.files import encode_png
from mmsynth.visualization import pool_report
from mmsynth.visualization.sample_cards import ShownJudge

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find_chromium() is None, reason=HOW_TO_INSTALL)]
DESKTOP, PHONE = 1280, 390
MANY = tuple(f'class {number:02d} of public management and administrative service land' for number in range(40))
TRACE = {'name': 'CRFM', 'trace': [{'step': step, 'loss_before': 2., 'loss_after': 1.} for step in range(8)]}


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with open_chromium(tmp_path_factory.mktemp('chromium')) as chromium:
        yield chromium


def full(root):
    """Everything that a report can have."""
    Image.new('RGB', (900, 300), (90, 120, 60)).save(root / 'style.jpg')
    entries = [filter_entry(index, classes=MANY, keep=index % 3 > 0, hardness=index, weight=filter_entry(index)[
        'label'].replace('filtered', 'weights')) for index in range(6)]
    pool = write_pool(root / 'pool', [
        dict(filter=entry, guidance=TRACE, mask_origin={'source': 'paste'}, prompt='word ' * 30,
             reference=str(root / 'style.jpg') if index else '/nowhere/a_rather_long_name_without_any_space_in_it.png')
        for index, entry in enumerate(entries)], MANY, tuple((index * 6, 255 - index * 6, 99) for index in range(40)))
    for folder in ('filtered', 'weights'):
        for index in range(6):
            write_label(pool, index, folder)
    judge = ShownJudge(lambda image: image[..., 0] % 40, 'configs/a/long/path/without/any/space/in/it/judge.py' * 2)
    pool_report(pool, root / 'report.html', class_counts_before=[1000] * 40, judge=judge,
                metrics={'IoU': dict.fromkeys(MANY, 0.5), 'mIoU': 0.5}, details={'judge.checkpoint': '/path' * 40})
    return 5 + 6 * (6 + 3 + 2) - 1  # plots; tiles of all, of the three hardest, the two best; a reference is missing


def plain(root, number):
    pool_report(write_pool(root / 'pool', [{}] * number), root / 'report.html', class_counts_before=None)
    return 2 * number + (number > 0)


CASES = {'full': full, 'one sample': lambda root: plain(root, 1), 'empty': lambda root: plain(root, 0)}


@pytest.mark.parametrize('width', [DESKTOP, PHONE])
@pytest.mark.parametrize('case', CASES)
def test_the_report_looks_right(browser, tmp_path, case, width):
    images = CASES[case](tmp_path)
    page = browser.probe(tmp_path / 'report.html', width)
    assert page.problems() == []
    assert page.layout['width'] == width and page.layout['images'] == images


def picture(color):
    data = base64.b64encode(encode_png(np.full((4, 4, 3), color, np.uint8))).decode()
    return f'<img src="data:image/png;base64,{data}" alt="good">'


@pytest.mark.parametrize('body, problem', [
    ('<img src="data:image/png;base64,AAAA" alt="torn">', 'broken: img: torn'),
    ('<img src="nowhere.png" alt="missing">', 'fetched: file://'),
    ('<p style="width:2000px">wide</p>', 'the page is 2008 px wide in a window of 1280 px'),
    ('<div style="overflow:hidden"><p style="width:2000px">cut</p></div>', 'outside: p: cut'),
    ('<script>console.error("loud")</script>', 'error: loud'),
    ('<script>undefined.x</script>', 'error: TypeError'),
    ('<p style="font-size:6px">tiny</p>', 'text of 6 px'),
])
def test_the_browser_sees_what_is_wrong(browser, tmp_path, body, problem):
    path = tmp_path / 'page.html'
    start = '<!DOCTYPE html><link rel="icon" href="data:,"><body><p>text</p>'
    path.write_text(f'{start}{picture(9)}')
    assert browser.probe(path, DESKTOP).problems() == []
    path.write_text(f'{start}{body}')
    assert any(line.startswith(problem) for line in browser.probe(path, DESKTOP).problems())
