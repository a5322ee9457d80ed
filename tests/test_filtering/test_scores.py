"""Scores per class from what evaluations leave, and the worst classes by them."""
import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric

from mmsynth.filtering.scores import read_scores, worst_classes

CLASSES = ('field', 'dirt road', 'water')


def test_the_worst_come_first_and_what_was_not_evaluated_is_left_out() -> None:
    scores = dict(a=0.5, b=0.1, c=math.nan, d=0.1, e=0.9)
    assert worst_classes(scores, 1) == ('b', )
    assert worst_classes(scores, 3) == ('b', 'd', 'a')
    for count in (0, 5):
        with pytest.raises(ValueError, match=f'`count`.* got {count}'):
            worst_classes(scores, count)


def test_the_log_of_mmseg_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mmseg's own metric writes it; an earlier evaluation in the log does not count."""
    log = tmp_path / 'run.log'
    logger = MMLogger('test_scores', log_file=str(log))
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: logger)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    for reading in (torch.zeros(8, dtype=torch.long), torch.tensor([0, 0, 0, 0, 1, 1, 0, 0])):
        metric = IoUMetric()
        metric.dataset_meta = dict(classes=CLASSES)
        metric.process({}, [dict(pred_sem_seg=dict(data=reading), gt_sem_seg=dict(data=labels))])
        metric.compute_metrics(metric.results)
        for handler in logger.handlers:
            handler.flush()
    scores = read_scores(log, CLASSES)
    assert scores == pytest.approx(dict(field=66.67, water=math.nan) | {'dirt road': 50.0}, nan_ok=True)
    assert worst_classes(scores, 2) == ('dirt road', 'field')


@pytest.mark.parametrize('text', [
    json.dumps(dict(field=0.7, water=None) | {'dirt road': 0.2, 'mIoU': 0.45}),
    json.dumps({'consistency/IoU.field': 0.7, 'IoU.dirt road': 0.2, 'IoU.water': None, 'aAcc': 0.9}, indent=1),
    '{"loss": 1.5, "step": 1}\n{"val/IoU.field": 0.1, "val/IoU.dirt road": 0.1, "val/IoU.water": 0.1}\n\n'
    '{"val/IoU.field": 0.7, "val/IoU.dirt road": 0.2, "val/IoU.water": NaN}\n',
], ids=['plain', 'prefixed', 'scalars'])
def test_json_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / 'scores.json').write_text(text)
    expected = dict(field=0.7, water=math.nan) | {'dirt road': 0.2}
    assert read_scores(tmp_path / 'scores.json', CLASSES) == pytest.approx(expected, nan_ok=True)


def test_what_has_no_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='none.json do not exist'):
        read_scores(tmp_path / 'none.json', CLASSES)
    (tmp_path / 'means.json').write_text('{"aAcc": 80.1, "mIoU": 51.2, "step": 4000}\n')
    with pytest.raises(ValueError, match='no score of field, dirt road, water'):
        read_scores(tmp_path / 'means.json', CLASSES)
    (tmp_path / 'other.json').write_text('{"field": 1, "dirt road": true, "water": 2}')
    with pytest.raises(ValueError, match='has no score of dirt road;'):
        read_scores(tmp_path / 'other.json', CLASSES)
