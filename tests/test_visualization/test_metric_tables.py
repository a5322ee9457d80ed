"""Measures become tables: single values by name, values per class as columns."""
from html_page import Page

from mmsynth.visualization import Report
from mmsynth.visualization.pool_report import add_metrics

CLASSES = ('road', 'dirt.road', 'water')


def tables(tmp_path, metrics):
    report = Report('t', {})
    add_metrics(report, metrics, CLASSES)
    report.write(tmp_path / 'report.html')
    return Page(tmp_path / 'report.html').tables


def test_single_values_and_columns(tmp_path):
    singles, classes = tables(tmp_path, {
        'images': 1200, 'judge': {'role': 'did not guide', 'ok': True}, 'real': None, 'seeds': [1, 'a'],
        'metrics': {'mask/mIoU': 0.51234, 'mask/IoU.road': 0.5, 'mask/IoU.dirt.road': 0.25, 'mask/IoU.water': None},
        'frechet': {'per_class': [1, None, 3.5]}})
    assert singles[1:] == [['images', '1,200'], ['judge.role', 'did not guide'], ['judge.ok', 'True'], ['real', '–'],
                           ['seeds', '1, a'], ['mask/mIoU', '0.5123']]
    assert classes == [['class', 'mask/IoU', 'frechet.per_class'], ['road', '0.5', '1'], ['dirt.road', '0.25', '–'],
                       ['water', '–', '3.5']]


def test_text_named_like_a_class_is_no_column(tmp_path):
    assert tables(tmp_path, {'config.road': 'a.py'}) == [[['measure', 'value'], ['config.road', 'a.py']]]


def test_columns_alone(tmp_path):
    assert tables(tmp_path, {'IoU': {'water': 0.5}}) == [
        [['class', 'IoU'], ['road', '–'], ['dirt.road', '–'], ['water', '0.5']]]
