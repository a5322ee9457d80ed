"""The report of a finished pool with a judge, a real set and measures, from Python and as a command."""
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from colour_judges import ColourJudge
from html_page import Page
from mmengine.config import Config
from PIL import Image
from pool_samples import write_pool
from small_run import CLASSES, ITERATIONS, PALETTE, ROOT, SmallRun, train

from mmsynth.apis.report import count_mask_folder, count_real_config, write_report
from mmsynth.pool import Pool


@pytest.fixture(scope='module')
def pool(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return small_run.synthesize(tmp_path_factory.mktemp('report') / 'pool')


@pytest.fixture(scope='module')
def judge(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a segmentor that did not guide."""
    folder = tmp_path_factory.mktemp('judge')
    train(small_run.critic_config_file, folder, {'randomness.seed': 7})
    return folder / f'iter_{ITERATIONS}.pth'


def real_counts(folder: Path) -> list[int]:
    masks = [np.asarray(Image.open(path)) for path in folder.glob('*.png')]
    return [sum(int((mask == index).sum()) for mask in masks) for index in range(len(CLASSES))]


def test_config_and_folder_count_the_same(small_run: SmallRun) -> None:
    expected = real_counts(small_run.data / 'masks')
    assert count_real_config(small_run.critic_config_file, CLASSES) == expected
    assert count_real_config(small_run.config_file, CLASSES) == expected  # LoadSegMap in the place of LoadAnnotations
    assert count_mask_folder(small_run.data / 'masks', CLASSES) == expected


def test_repetitions_by_wrappers_do_not_count(small_run: SmallRun, tmp_path: Path) -> None:
    cfg = Config.fromfile(small_run.critic_config_file)
    plain = cfg.train_dataloader.dataset.to_dict()
    cfg.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[plain, dict(type='RepeatDataset', dataset=plain, times=3)])
    cfg.dump(tmp_path / 'wrapped.py')
    assert count_real_config(tmp_path / 'wrapped.py', CLASSES) == [
        2 * count for count in real_counts(small_run.data / 'masks')]


def test_the_tool_writes_the_page(small_run: SmallRun, pool: Pool, judge: Path, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / 'measures.json').write_text(json.dumps({'metrics': {'mIoU': 0.25}}))
    monkeypatch.setattr(sys, 'argv', [
        'report.py', str(pool.root), '--judge-config', str(small_run.critic_config_file),
        '--judge-checkpoint', str(judge), '--real-config', str(small_run.critic_config_file),
        '--metrics', str(tmp_path / 'measures.json'), '--max-samples', '3',
        '--out', str(tmp_path / 'new' / 'page.html')])
    runpy.run_path(str(ROOT / 'tools' / 'analysis_tools' / 'report.py'), run_name='__main__')
    assert f'report: {tmp_path}/new/page.html' in capsys.readouterr().out
    page = Page(tmp_path / 'new' / 'page.html')
    assert page.captions[:3] == ['mask', 'synthetic', 'judge reads'] and len(page.cards) == 3
    assert all(card[1].startswith('judge agrees on ') for card in page.cards)
    assert 'Its part in guidance: did not guide.' in page.source
    real = real_counts(small_run.data / 'masks')
    assert [row[1] for row in page.tables[0][1:]] == [f'{count:,}' for count in real]
    assert ['mIoU', '0.25'] in page.tables[2] and 'Class balance' in page.headings


def test_the_page_says_that_the_critic_reads(small_run: SmallRun, pool: Pool, tmp_path: Path) -> None:
    path = write_report(pool.root, tmp_path / 'page.html', judge_config=small_run.critic_config_file,
                        judge_checkpoint=small_run.critic)
    page = Page(path)
    assert 'Its part in guidance: the critic itself.' in page.source
    assert ['judge.part_in_guidance', 'the critic itself'] in page.tables[-1]


def test_any_critic_of_images_reads(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / 'pool', [{}])
    page = Page(write_report(pool.root, judge=ColourJudge()))
    assert page.captions[:3] == ['mask', 'synthetic', 'judge reads'] and 'Judge: ColourJudge.' in page.source


def test_measures_in_the_pool_are_found(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / 'pool', [{}])
    (pool.root / 'metrics.json').write_text('{"mIoU": 0.75}')
    assert write_report(pool.root) == pool.root / 'report.html'
    assert ['mIoU', '0.75'] in Page(pool.root / 'report.html').tables[1]


def test_mistakes(small_run: SmallRun, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / 'pool', [{}])
    config, masks = small_run.critic_config_file, tmp_path / 'masks'
    masks.mkdir()
    (tmp_path / 'bad').mkdir()
    Image.fromarray(np.full((4, 4), 3, np.uint8)).save(tmp_path / 'bad' / 'wrong.png')
    (tmp_path / 'bad.json').write_text('{')
    (tmp_path / 'list.json').write_text('[]')
    (tmp_path / 'empty.py').write_text('a = 1')
    two = write_pool(tmp_path / 'two', [{}], CLASSES[:2], PALETTE[:2])
    for error, message, root, options in [
        (ValueError, 'give one of them', pool.root, dict(real_config=config, real_masks=masks)),
        (ValueError, 'go together', pool.root, dict(judge_config=config)),
        (FileNotFoundError, '`judge_checkpoint` x.pth does not exist', pool.root,
         dict(judge_config=config, judge_checkpoint='x.pth')),
        (ValueError, 'has 3 classes, the pool .* has 2', two.root,
         dict(judge_config=config, judge_checkpoint=small_run.critic)),
        (ValueError, 'has the classes field, road, water; the pool has ground', pool.root, dict(real_config=config)),
        (ValueError, 'no `train_dataloader.dataset`', pool.root, dict(real_config=tmp_path / 'empty.py')),
        (FileNotFoundError, 'is no folder', pool.root, dict(real_masks=tmp_path / 'nowhere')),
        (ValueError, 'holds no PNG file', pool.root, dict(real_masks=masks)),
        (ValueError, 'wrong.png: labels must be class ids below 3.*got 3.*if its ids are 1 … 3, subtract 1', pool.root,
         dict(real_masks=tmp_path / 'bad')),
        (FileNotFoundError, '`metrics` x.json does not exist', pool.root, dict(metrics='x.json')),
        (ValueError, 'bad.json is not JSON', pool.root, dict(metrics=tmp_path / 'bad.json')),
        (ValueError, 'list.json must be a JSON object, got a list', pool.root, dict(metrics=tmp_path / 'list.json')),
    ]:
        with pytest.raises(error, match=message):
            write_report(root, tmp_path / 'page.html', **options)
    assert not (tmp_path / 'page.html').exists()
