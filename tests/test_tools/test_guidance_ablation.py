"""Guidance ablation: the figures against what they are made of, resume, the command, reports, and mistakes."""
import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ablation.bench import AblationBench
from ablation.plan import RULE_TITLES, RULES, AblationOptions, TrainedParts, Variant
from ablation.report import report_ablation
from ablation.run import run_ablation
from ablation.store import AblationStore, Measurement
from mmengine.config import Config
from PIL import Image
from small_run import CLASSES, NAMES, ROOT, SIDE, SmallRun, run

from mmsynth.evaluation import FeatureSet, feature_distance, mask_consistency, read_with_features
from mmsynth.guidance import SegmentorCritic
from mmsynth.pool import Pool
from mmsynth.utils import read_checkpoint

pytestmark = pytest.mark.slow

TOOL = ROOT / 'tools' / 'analysis_tools' / 'guidance_ablation.py'
FEW = AblationOptions(rules=('released', 'relative'), steps=(0, 1, 'all'))
FEW_NAMES = ['none', 'released-1', 'released-all', 'relative-1', 'relative-all']


@dataclass(frozen=True)
class Workshop:
    """A trained small run with a judge.

    Attributes:
        run: Generator and critic.
        config: The generator's config; its training images are neither cropped nor flipped.
        judge: The judge's weights: the critic's, disturbed.
    """

    run: SmallRun
    config: Path
    judge: Path

    def parts(self, *seeds: int) -> TrainedParts:
        return TrainedParts(seeds, self.config, self.run.generator, self.run.critic_config_file, self.judge)

    def judge_network(self) -> SegmentorCritic:
        return SegmentorCritic(str(self.run.critic_config_file), str(self.judge))


@pytest.fixture(scope='module')
def workshop(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp('workshop')
    cfg = small_run.config()
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline if step['type'] != 'RandomFlip']
    cfg.dump(folder / 'generator.py')
    generator = torch.Generator().manual_seed(0)
    state = read_checkpoint(small_run.critic)
    weight = state['decode_head.conv_seg.weight']
    weight += 0.3 * torch.randn(weight.shape, generator=generator)
    torch.save(dict(state_dict=state), folder / 'judge.pth')
    return Workshop(small_run, folder / 'generator.py', folder / 'judge.pth')


@pytest.fixture(scope='module')
def measured(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which seed 0 was measured; do not write into it."""
    out_dir = tmp_path_factory.mktemp('ablations') / 'measured'
    run_ablation([workshop.parts(0)], out_dir, FEW)
    return out_dir


@pytest.fixture(scope='module')
def measurements(workshop: Workshop, measured: Path) -> dict[str, Measurement]:
    return {own.variant.name: own for own in run_ablation([workshop.parts(0)], measured, FEW)}


# ---- the figures


def released(small_run: SmallRun, out_dir: Path) -> Pool:
    """What the tool for synthesis generates under the released rule, all steps."""
    cfg = small_run.config(synthesis__guidance__steps='all', synthesis__guidance__step_size=0.1)
    cfg.synthesis.guidance.update(norm='raw', policy='decrease', legacy=True)
    return small_run.synthesize(out_dir, cfg)


@pytest.mark.parametrize('name, generate', [
    ('none', lambda small_run, out_dir: small_run.synthesize(out_dir, guidance='none')),
    ('released-all', released),
    ('relative-1', lambda small_run, out_dir: small_run.synthesize(
        out_dir, small_run.config(synthesis__guidance__steps=1, synthesis__guidance__step_size=0.1)))])
def test_figures_are_those_of_a_pool(name: str, generate: Callable[[SmallRun, Path], Pool], workshop: Workshop,
                                     measurements: dict[str, Measurement], tmp_path: Path) -> None:
    """The same images as ``synthesize`` generates under the same settings, read as ``mask_consistency`` does."""
    pool, own, judge = generate(workshop.run, tmp_path / 'pool'), measurements[name], workshop.judge_network()
    critic = SegmentorCritic(str(workshop.run.critic_config_file), str(workshop.run.critic))
    assert own.judge_miou == pytest.approx(100 * mask_consistency(pool, judge).mean_iou)
    assert own.critic_miou == pytest.approx(100 * mask_consistency(pool, critic).mean_iou)
    assert own.images == own.real_images == len(NAMES)
    changes = [step['relative_change'] for record in pool.records if record.guidance
               for step in pool.load_trace(record)]
    assert own.relative_change == (pytest.approx(np.mean(changes)) if changes else None)
    real, synthetic = FeatureSet(len(CLASSES)), FeatureSet(len(CLASSES))
    for stem, record in zip(NAMES, pool.records, strict=True):
        mask = torch.from_numpy(pool.load_mask(record).astype(int))[None]
        photo = np.asarray(Image.open(workshop.run.data / 'images' / f'{stem}.png'))
        for features, image in ((real, photo), (synthetic, pool.load_image(record))):
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
            features.add(read_with_features(judge, pixels, mask)[1])
    assert own.frechet == pytest.approx(feature_distance(real, synthetic), rel=1e-4)
    assert tuple(own.class_images.values()) == synthetic.class_counts
    assert own.class_frechet == dict.fromkeys(CLASSES)  # four images are too few for a class


def test_no_step_is_none_and_rules_differ(measurements: dict[str, Measurement]) -> None:
    assert list(measurements) == FEW_NAMES  # nothing is sampled at 0 steps
    assert measurements['relative-all'].relative_change == pytest.approx(0.1, rel=1e-3)
    # the released rule hardly moves a generator that is almost untrained: its velocities are within the clamp
    assert 0 < measurements['released-all'].relative_change < 0.01
    assert len({measurements[name].frechet for name in ('none', 'relative-1', 'relative-all')}) == 3
    assert all(own.seconds_per_image > 0 for own in measurements.values())


def test_real_images_are_the_same_each_time_and_cut_to_the_masks(workshop: Workshop, tmp_path: Path) -> None:
    cfg = workshop.run.config()  # with random flips
    cfg.synthesis.dataset.pipeline.insert(1, dict(type='mmsynth.CropSegMap', crop_size=(8, 12)))
    cfg.dump(tmp_path / 'cropped.py')
    benches = [AblationBench(replace(workshop.parts(seed), config=tmp_path / 'cropped.py'), FEW) for seed in (0, 1)]
    first, second = (bench.real_features for bench in benches)
    assert torch.equal(first.images, second.images) and len(first) == len(NAMES)
    whole = AblationBench(workshop.parts(0), FEW).real_features
    assert not torch.allclose(first.images, whole.images)
    half = AblationBench(workshop.parts(0), AblationOptions(num_real=2)).real_features
    assert torch.equal(half.images, whole.images[::2])


# ---- stored, continued, refused


def test_a_killed_run_continues(workshop: Workshop, measurements: dict[str, Measurement], tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = AblationBench.measure, []

    def measure(bench: AblationBench, variant: Variant, *rest: object) -> Measurement:
        calls.append(variant.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(bench, variant, *rest)

    monkeypatch.setattr(AblationBench, 'measure', measure)
    with pytest.raises(KeyboardInterrupt):
        run_ablation([workshop.parts(0)], tmp_path, FEW)
    found = run_ablation([workshop.parts(0)], tmp_path, FEW)
    assert calls == [*FEW_NAMES[:3], *FEW_NAMES[2:]]
    assert [replace(own, seconds_per_image=0) for own in found] == [
        replace(own, seconds_per_image=0) for own in measurements.values()]


def test_what_was_measured_is_not_measured_again(workshop: Workshop, measured: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AblationBench, 'measure', None)
    monkeypatch.setattr('ablation.bench.build_generator', None)
    fewer = AblationOptions(rules=('relative', ), steps=('all', ))
    assert [own.variant.name for own in run_ablation([workshop.parts(0)], measured, fewer)] == ['none', 'relative-all']


def test_other_settings_are_refused(workshop: Workshop, measured: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'(?s)none.json .*limit: None there, 2 here'):
        run_ablation([workshop.parts(0)], measured, replace(FEW, limit=2))
    torch.save(dict(state_dict=read_checkpoint(workshop.judge)) | dict(meta=1), tmp_path / 'judge.pth')
    with pytest.raises(ValueError, match='judge.weights_sha256: '):
        run_ablation([replace(workshop.parts(0), judge_checkpoint=tmp_path / 'judge.pth')], measured, FEW)


def test_a_damaged_measurement_is_named(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / 'measurements' / 'seed_0' / 'none.json'
    path.parent.mkdir(parents=True)
    path.write_text('{"settings": {}}')
    with pytest.raises(ValueError, match='none.json .*KeyError'):
        run_ablation([workshop.parts(0)], tmp_path, FEW)


# ---- mistakes


def test_the_judge_must_not_be_the_critic(workshop: Workshop, tmp_path: Path) -> None:
    parts = replace(workshop.parts(0), judge_checkpoint=workshop.run.critic)
    with pytest.raises(ValueError, match='is the critic that guides'):
        run_ablation([parts], tmp_path, FEW)


def test_more_steps_than_the_run_has(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`steps` 9 is more than the run's 3"):
        run_ablation([workshop.parts(0)], tmp_path, replace(FEW, steps=(1, 9)))
    assert not list(tmp_path.rglob('*.json'))  # found before anything is measured


@pytest.mark.parametrize('missing', ['synthesis', 'train_dataloader'])
def test_config_without_what_is_needed(workshop: Workshop, tmp_path: Path, missing: str) -> None:
    cfg = workshop.run.config()
    cfg.pop(missing)
    cfg.dump(tmp_path / 'bare.py')
    with pytest.raises(ValueError, match=f'bare.py: it has no .*`{missing}'):
        run_ablation([replace(workshop.parts(0), config=tmp_path / 'bare.py')], tmp_path, FEW)


@pytest.mark.parametrize('seeds', [[], [1, 1]])
def test_seeds_must_differ(workshop: Workshop, tmp_path: Path, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match='`seeds` must be at least one and all different'):
        run_ablation([workshop.parts(*seeds)], tmp_path, FEW)


# ---- the report


def test_report(measurements: dict[str, Measurement], measured: Path, tmp_path: Path,
                capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(measured, tmp_path / 'out')
    report_ablation(list(measurements.values()), tmp_path / 'out')
    text = (tmp_path / 'out' / 'table.md').read_text()
    assert 'Seed 0: no Fréchet distance for classes in fewer than 10 images: field (4 synthetic, 4 real)' in text
    assert f'| relative | all | {measurements["relative-all"].judge_miou:.2f} |' in text
    assert 'Rules' in capsys.readouterr().out
    side = 112 + 8
    grid = np.asarray(Image.open(tmp_path / 'out' / 'samples.png'))
    assert grid.shape[1] == 8 + side * (1 + len(FEW_NAMES)) and grid.shape[0] == 26 + side * len(NAMES)
    assert AblationStore(measured).read_pictures('none', 0)[0].shape == (SIDE, SIDE, 3)


# ---- the command


def test_command_measures_a_seed_and_reports_both(workshop: Workshop, tmp_path: Path) -> None:
    """One process a seed, then a call that only reports."""
    options = [workshop.config, workshop.run.generator, '--judge-config', workshop.run.critic_config_file,
               '--judge-checkpoint', workshop.judge, '--out-dir', 'out', '--rules', 'relative', 'best-of-n',
               '--steps', '0', '1', '2', '--device', 'cpu', '--batch-size', '3', '--seeds']
    run_ablation([workshop.parts(0)], tmp_path / 'out',
                 AblationOptions(rules=('relative', 'best-of-n'), steps=(0, 1, 2), batch_size=3))
    output = run(TOOL, *options, '0', '1', cwd=tmp_path)
    assert 'seed 1, best-of-n: 100%' in output and '32/32' in output and 'img/s' in output
    assert 'seed 0, ' not in output and 'ablation:  50%' in output  # its half was there
    lines = [json.loads(line) for line in (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()]
    assert [(line['seed'], line['rule'], line['steps']) for line in lines] == [
        (seed, rule, steps) for seed in (0, 1)
        for rule, steps in (('none', None), ('relative', 1), ('relative', 2), ('best-of-n', None))]
    judge = [line['judge_miou'] for line in lines if (line['rule'], line['steps']) == ('relative', 2)]
    row = f'| relative | 2 | {np.mean(judge):.2f} ± {np.std(judge, ddof=1):.2f} |'
    assert row in (tmp_path / 'out' / 'table.md').read_text()
    for name in ('ablation.png', 'samples.png'):
        assert min(Image.open(tmp_path / 'out' / name).size) > 300
    assert all(line['relative_change'] is None for line in lines if line['rule'] == 'best-of-n')


def test_command_takes_the_parts_of_a_demo(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture) -> None:
    """The script itself, in this process."""
    for part, weights in dict(generator=workshop.run.generator, judge=workshop.judge).items():
        folder = tmp_path / 'demo' / 'seed_4' / part
        folder.mkdir(parents=True)
        shutil.copy(weights, folder / 'iter_2.pth')
        (folder / 'last_checkpoint').write_text(f'{folder}/iter_2.pth')
    configs = tmp_path / 'demo' / 'seed_4' / 'configs'
    configs.mkdir()
    shutil.copy(workshop.config, configs / 'generator.py')
    Config.fromfile(workshop.run.critic_config_file).dump(configs / 'judge.py')
    monkeypatch.setattr(sys, 'argv', ['guidance_ablation.py', '--demo-dir', str(tmp_path / 'demo'), '--out-dir',
                                      str(tmp_path / 'out'), '--rules', 'none', '--device', 'cpu', '--limit', '3'])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert '3 synthetic and 4 real images per seed; seeds 4;' in capsys.readouterr().out
    line, = (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()
    assert json.loads(line)['seed'] == 4 and json.loads(line)['images'] == 3


@pytest.mark.parametrize('options, message', [
    (['--out-dir', 'o'], 'or --demo-dir OUT alone; got neither'),
    (['c.py', '--out-dir', 'o'], 'all four, .* got config'),
    (['c.py', 'w.pth', '--judge-config', 'j.py', '--judge-checkpoint', 'j.pth', '--demo-dir', 'd', '--out-dir', 'o'],
     'got config, checkpoint, judge_config, judge_checkpoint, demo_dir'),
    (['--demo-dir', 'd'], 'required: --out-dir'),
    (['--demo-dir', 'd', '--out-dir', 'o', '--steps', 'most'], "--steps: must be a number or 'all', got 'most'"),
    (['--demo-dir', 'd', '--out-dir', 'o', '--rules', 'crfm'], "invalid choice: 'crfm'"),
])
def test_command_refuses(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
                         capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, 'argv', ['guidance_ablation.py', *options])
    with pytest.raises(SystemExit, match='2'):
        runpy.run_path(str(TOOL), run_name='__main__')
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_command_knows_the_rules() -> None:
    assert runpy.run_path(str(TOOL))['RULES'] == tuple(RULES) == tuple(RULE_TITLES)
