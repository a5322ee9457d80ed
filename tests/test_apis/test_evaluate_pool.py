"""Measures of a finished pool: the tool on the small run's pool, and the message of each mistake."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from colour_judges import CLASSES, PALETTE, ColourJudge, coloured, halves
from PIL import Image
from small_run import ROOT, SmallRun, run

from mmsynth.apis.evaluate_pool import RealImages, evaluate_pool
from mmsynth.evaluation import mask_consistency
from mmsynth.filtering import label_hash
from mmsynth.guidance import SegmentorCritic
from mmsynth.pool import Pool
from mmsynth.utils import read_checkpoint
from mmsynth.utils.hashes import file_hash


@pytest.fixture(scope='module')
def judge(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the critic's architecture that are not the critic's."""
    state = read_checkpoint(small_run.critic)
    path = tmp_path_factory.mktemp('judge') / 'judge.pth'
    torch.save({name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()}, path)
    return path


@pytest.fixture(scope='module')
def pool(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Two guided images for each of two masks."""
    return small_run.synthesize(tmp_path_factory.mktemp('pools') / 'pool', limit=2, num_per_mask=2)


def test_the_tool_writes_what_the_metrics_say(small_run: SmallRun, pool: Pool, judge: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'evaluation.json'
    monkeypatch.setattr(sys, 'argv', [
        'evaluate_pool.py', str(pool.root), '--judge-config', str(small_run.critic_config_file), '--judge-checkpoint',
        str(judge), '--real-config', str(small_run.critic_config_file), '--num-real', '3', '--out', str(out),
        '--batch-size', '3', '--device', 'cpu'])
    runpy.run_path(str(ROOT / 'tools' / 'analysis_tools' / 'evaluate_pool.py'), run_name='__main__')
    found, shown = json.loads(out.read_text()), capsys.readouterr()
    assert 'consistency/mIoU' in shown.out and 'field' in shown.out and '4/4' in shown.err
    assert found['images'] == 4 and found['judge']['role'] == 'did not guide'
    assert found['judge']['weights_sha256'] == file_hash(judge)
    metrics = found['metrics']
    expected = mask_consistency(pool, SegmentorCritic(str(small_run.critic_config_file), str(judge)))
    assert metrics['consistency/mIoU'] == pytest.approx(100 * expected.mean_iou, rel=1e-2)
    assert metrics['frechet/images'] == 4 and metrics['frechet/real_images'] == 3 and metrics['frechet/distance'] > 0
    assert metrics['diversity/masks'] == 2 and metrics['diversity/pixels'] > 0
    shares = [metrics[f'classes/before.{name}'] for name in CLASSES]
    assert sum(shares) == pytest.approx(100) and 'classes/after.field' not in metrics


@pytest.mark.process
def test_ranks_of_torchrun_say_what_one_process_says(small_run: SmallRun, judge: Path, tmp_path: Path) -> None:
    """Of an odd number of images, so that one has more to read."""
    pool = small_run.synthesize(tmp_path / 'pool', guidance='none', limit=3)
    run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2,
        ROOT / 'tools' / 'analysis_tools' / 'evaluate_pool.py', pool.root, '--judge-config',
        small_run.critic_config_file, '--judge-checkpoint', judge, '--real-config', small_run.critic_config_file,
        '--out', tmp_path / 'found.json', '--device', 'cpu', cwd=tmp_path)
    alone = evaluate_pool(pool.root, small_run.critic_config_file, judge, real=RealImages(small_run.critic_config_file))
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['images'] == 3 and found['metrics'] == pytest.approx(alone['metrics'], rel=1e-4, abs=1e-4)


def test_the_critic_may_judge_if_it_is_said(small_run: SmallRun, pool: Pool) -> None:
    critic = pool.root, small_run.critic_config_file, small_run.critic
    with pytest.raises(ValueError, match='`allow_critic`'):
        evaluate_pool(*critic)
    assert evaluate_pool(*critic, allow_critic=True)['judge']['role'] == 'the critic itself'


def test_a_filtered_pool_shows_what_is_left(small_run: SmallRun, judge: Path, tmp_path: Path) -> None:
    """Of two masks, half field and half road: one is left the field, the other is not kept."""
    left = halves(0, 255, side=16)
    with Pool.create(tmp_path / 'pool', {}, CLASSES, PALETTE) as made:
        for number, keep in enumerate((True, False)):
            mask = halves(0, 1, side=16)
            made.add(str(number), coloured(mask), mask, source_mask='m', prompt='', seed=number,
                     generator=dict(type='x', config_sha256='', weights_sha256=None),
                     filter=dict(keep=keep, labels_sha256=label_hash(mask)), filtered=left)
    metrics = evaluate_pool(tmp_path / 'pool', small_run.critic_config_file, judge)['metrics']
    assert metrics['classes/before.road'] == 50 and metrics['classes/after.road'] == 0
    assert metrics['classes/after.field'] == 100 and metrics['classes/after.unlabelled'] == 75
    Image.fromarray(halves(0, 2, side=16)).save(made.root / made.records[1].mask)
    with pytest.raises(ValueError, match="sample '1': its mask .* changed"):
        evaluate_pool(tmp_path / 'pool', small_run.critic_config_file, judge)


def test_any_critic_of_images_judges(small_run: SmallRun, pool: Pool) -> None:
    found = evaluate_pool(pool.root, judge=ColourJudge())
    assert found['judge']['config'] == 'ColourJudge' and 'consistency/mIoU' in found['metrics']
    assert 'diversity/pixels' in found['metrics'] and 'diversity/features' not in found['metrics']
    with pytest.raises(ValueError, match='`judge` ColourJudge has no decode head'):
        evaluate_pool(pool.root, judge=ColourJudge(), real=RealImages(small_run.critic_config_file))
    with pytest.raises(ValueError, match='`judge` is missing'):
        evaluate_pool(pool.root)


def test_what_cannot_be_evaluated(small_run: SmallRun, pool: Pool, judge: Path, tmp_path: Path) -> None:
    given = pool.root, small_run.critic_config_file, judge
    with Pool.create(tmp_path / 'empty', {}, CLASSES, PALETTE):
        pass
    with pytest.raises(ValueError, match='empty is empty; there is nothing to evaluate'):
        evaluate_pool(tmp_path / 'empty', *given[1:])
    with pytest.raises(ValueError, match='`batch_size` must be at least 1, got 0'):
        evaluate_pool(*given, batch_size=0)
    with pytest.raises(ValueError, match='`inception` has an effect with `real`'):
        evaluate_pool(*given, inception='w.pth')
    with pytest.raises(FileNotFoundError, match='gone.pth does not exist'):
        evaluate_pool(*given[:2], 'gone.pth')
    with pytest.raises(ValueError, match='it has no `val_dataloader.dataset`.*another --real-split'):
        evaluate_pool(*given, real=RealImages(small_run.critic_config_file, 'val'))
    with pytest.raises(ValueError, match="`split`.* got 'all'"):
        RealImages(small_run.critic_config_file, 'all')
