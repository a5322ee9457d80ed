"""The report of a pool: its numbers by hand, and that it can be written of any pool."""
import numpy as np
import pytest
from html_page import Page
from PIL import Image
from pool_samples import GENERATOR, filter_entry, write_label, write_pool

from mmsynth.visualization import count_classes, pool_report
from mmsynth.visualization.sample_cards import ShownJudge


def report(pool, path, **options):
    pool_report(pool, path, **dict(class_counts_before=None) | options)
    page = Page(path)
    page.assert_self_contained()
    return page


def guidance():
    return {'name': 'CRFM', 'trace': [
        {'step': step, 'loss_before': 2. - step, 'loss_after': float('nan')} for step in range(2)]}


def test_the_whole_story(tmp_path):
    Image.new('RGB', (30, 20), (9, 8, 7)).save(tmp_path / 'style.png')
    samples = [dict(guidance=guidance(),
                    filter=filter_entry(index, keep=index != 3, hardness=index, gone=48 * (index % 3)),
                    mask_origin={'source': 'flip'} if index else None, source_mask=f'm{index // 2}',
                    reference=str(tmp_path / ('style.png' if index else 'gone.png'))) for index in range(5)]
    pool = write_pool(tmp_path / 'pool', samples)
    write_label(pool, 0)
    judge = ShownJudge(lambda image: np.full(image.shape[:2], 1, np.uint8), 'fcn.py', 'Did not guide.')
    page = report(pool, tmp_path / 'report.html', class_counts_before=[9040, 0, 0], judge=judge, max_samples=4,
                  metrics={'mIoU': 0.5}, details={'judge.config': 'fcn.py'})
    assert page.headings[1:] == [
        'Samples', 'Class balance', 'Filter rate per class', 'Kept and dropped samples', 'Hardest samples',
        'Best samples', 'Guidance', 'Where the masks came from', 'Metrics', 'Where it came from']
    balance, rates, reasons, trace, origins, metrics, provenance = page.tables
    # Samples 0 and 3 are ground, 1 and 4 house, 2 water, of 192 pixels; 3 is dropped; 1 and 4 lose 48, 2 loses 96.
    assert balance[1:] == [
        ['ground', '9,040', '384', '192', '100.0%', '40.0%', '33.3%', '96.0%', '0.9601'],
        ['house', '0', '384', '288', '0.0%', '40.0%', '50.0%', '3.0%', '–'],
        ['water', '0', '192', '96', '0.0%', '20.0%', '16.7%', '1%', '–']]
    assert rates[1:] == [['ground', '2', '384', '0', '0.0%', '0.5'], ['house', '2', '384', '96', '25.0%', '0.5'],
                         ['water', '1', '192', '96', '50.0%', '0.5']]
    assert reasons[1:] == [['kept', 'weak class house', '4', '80.0%'],
                            ['dropped', '… % valid, below 80 %', '1', '20.0%']]
    assert trace == [['step', 'loss before'], ['0', '2'], ['1', '1']]
    assert origins[1:] == [['flip', '4', '80.0%', '3'], ['data set, as it is', '1', '20.0%', '1']]
    assert metrics == [['measure', 'value'], ['mIoU', '0.5']]
    for row in (['num_steps', '23'], ['guidance.trust', '–'], ['filter_sha256', 'cd' * 8], ['judge.config', 'fcn.py'],
                ['recorded generator: config_sha256', GENERATOR['config_sha256']]):
        assert row in provenance
    assert '4 of 5 samples' in page.source and 'Judge: fcn.py. Did not guide.' in page.source
    assert '4 of 5' in page.source  # kept
    first, hardest, best = page.cards[0], page.cards[4], page.cards[6]
    assert first == ['s0', 'kept', 'weak class house', 'judge agrees on 0.0% of the labelled pixels', '38 % valid',
                     'hardness 0.00', '“p”']
    assert hardest[:2] == ['s4', 'kept'] and page.cards[5][:2] == ['s3', 'dropped'] and best[:2] == ['s0', 'kept']
    assert page.captions[:5] == ['mask', 'reference', 'synthetic', 'judge reads', 'filtered label']
    assert page.blanks[0] == 'cannot be read here: gone.png' and page.blanks[1] == 'cannot be read'


def test_without_guidance_filter_reference_or_real_counts(tmp_path):
    pool = write_pool(tmp_path / 'pool', [{}] * 5)
    assert count_classes(pool) == [384, 384, 192]
    page = report(pool, tmp_path / 'report.html')
    assert page.headings[1:] == ['Samples', 'Class balance', 'Where it came from']
    assert page.tables[0] == [['class', 'synthetic pixels', 'synthetic share'], ['ground', '384', '40.0%'],
                              ['house', '384', '40.0%'], ['water', '192', '20.0%']]
    assert page.captions[:2] == ['mask', 'synthetic'] and len(page.images) == 11 and not page.blanks


def test_soft_weights_count_as_parts_of_pixels_and_are_shown(tmp_path):
    entries = [filter_entry(index, gone=9.6, weight=filter_entry(index)['label'].replace('filtered', 'weights'))
               for index in range(2)]
    pool = write_pool(tmp_path / 'pool', [{'filter': entry} for entry in entries])
    for folder in ('filtered', 'weights'):
        write_label(pool, 0, folder)
    page = report(pool, tmp_path / 'report.html')
    assert page.captions[:4] == ['mask', 'synthetic', 'filtered label', 'weight'] and len(page.blanks) == 2
    assert page.tables[0][1] == ['ground', '192', '182', '50.0%', '50.0%']


def test_a_filter_that_kept_nothing(tmp_path):
    pool = write_pool(tmp_path / 'pool', [{'filter': filter_entry(0, keep=False)}])
    page = report(pool, tmp_path / 'report.html', class_counts_before=[1, 1, 1])
    assert 'The filter kept no labelled pixel' in page.source and 'Hardest samples' not in page.headings


def test_results_of_other_filters_are_named(tmp_path):
    page = report(write_pool(tmp_path / 'pool', [{'filter': {'kept': True}}, {}]), tmp_path / 'report.html')
    assert 'Other filters' in page.headings and '1 samples carry a result that does not say' in page.source


@pytest.mark.parametrize('samples', [
    [], [dict(mask=np.full((16, 24), 255, np.uint8), filter=filter_entry(0, pixels={}))]])
def test_nothing_labelled(tmp_path, samples):
    page = report(write_pool(tmp_path / 'pool', samples), tmp_path / 'report.html', class_counts_before=[1, 1, 1],
                  judge=ShownJudge(lambda image: image[..., 0] % 3, 'a judge'))
    assert ('The pool is empty.' if not samples else 'No pixel is labelled: synthetic.') in page.source


def test_mistakes(tmp_path):
    pool = write_pool(tmp_path / 'pool', [{}])
    with pytest.raises(ValueError, match=r'one count per class of the pool \(3\), got 2'):
        pool_report(pool, tmp_path / 'r.html', class_counts_before=[1, 2])
    with pytest.raises(ValueError, match='`max_samples` must not be negative, got -1'):
        pool_report(pool, tmp_path / 'r.html', class_counts_before=None, max_samples=-1)
