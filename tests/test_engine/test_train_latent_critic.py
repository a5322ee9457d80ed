"""Training of a latent critic: its loss in closed form, what it learns from, and a small run from config to file."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors import safe_open
from small_run import ROOT, SAMPLING_STEPS, SmallRun
from tiny_generator import images, oracle, samples, todsynth
from torch import Tensor

from mmsynth.engine.train_latent_critic import (
    DistillationBatch,
    Teacher,
    distillation_loss,
    measure_agreement,
    train_latent_critic,
)
from mmsynth.guidance import Critic, LatentCritic
from mmsynth.models.generators import BaseGenerator
from mmsynth.pool import Pool
from mmsynth.registry import MODELS

pytestmark = pytest.mark.slow


class Brightness(Critic):
    """A segmentor of three classes that reads the three colours."""

    num_classes, ignore_index = 3, 255

    def predict_logits(self, inputs: Tensor) -> Tensor:
        return 4 * inputs


class DecodedBrightness(Critic):
    """The same by way of the latent: what a perfectly trained head would be."""

    input_type, num_classes, ignore_index = 'latents', 3, 255

    def __init__(self, generator: BaseGenerator) -> None:
        super().__init__()
        self.generator = generator

    def predict_logits(self, latents: Tensor) -> Tensor:
        return 4 * (self.generator.latent_codec.decode(latents) / 2 + 0.5).clamp(0, 1)


def batch(count: int = 4) -> dict:
    """What a data loader gives: BGR bytes and samples."""
    inputs = [((image.flip(0) + 1) * 127.5).round().to(torch.uint8) for image in images(count)]
    return dict(inputs=inputs, data_samples=samples(count))


# ---- the loss


def test_the_loss_is_divergence_and_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, target, masks = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6), torch.randint(3, (2, 5, 6))
    masks[0, :2] = -100
    p, q = target.softmax(1), logits.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    entropy = -q[:2].gather(1, masks.clamp_min(0)[:, None]).log()[:, 0][masks >= 0].mean()
    torch.testing.assert_close(distillation_loss(logits, target, masks, mask_weight=0.25), divergence + entropy / 4)
    torch.testing.assert_close(distillation_loss(logits, target, masks, mask_weight=0.0), divergence)


def test_a_head_that_says_the_same_has_no_divergence() -> None:
    target = torch.randn(2, 3, 4, 4)
    nothing = torch.full((2, 4, 4), -100)
    assert distillation_loss(target + 7, target, nothing, mask_weight=1.0).abs() < 1e-6


# ---- what is learned from


def test_batches_hold_the_images_latents_and_the_estimates_of_a_run() -> None:
    """The oracle predicts the true velocity, so that every clean estimate is the clean latent."""
    generator = oracle(num_steps=3)
    data = Teacher(Brightness(), generator).prepare(batch(), with_estimates=True)
    clean = generator.latent_codec.encode(images())
    torch.testing.assert_close(data.clean, clean, atol=0.1, rtol=0)  # the images went through bytes
    assert len(data.estimates) == 3
    for estimate in data.estimates:
        torch.testing.assert_close(estimate, clean, atol=1e-4, rtol=0)
    assert torch.equal(data.masks, torch.cat([sample.gt_sem_seg.data for sample in samples()]))


def test_estimates_sharpen_over_a_run() -> None:
    """With a network that knows nothing they are the noisy latent minus a guess: far from the last at first."""
    data = Teacher(Brightness(), todsynth(num_steps=4)).prepare(batch(), with_estimates=True)
    distances = [float((estimate - data.estimates[-1]).norm()) for estimate in data.estimates]
    assert len(distances) == 4 and distances[0] > 0 and distances[-1] == 0
    assert Teacher(Brightness(), todsynth()).prepare(batch(), with_estimates=False).estimates == ()


def test_the_teacher_predicts_on_the_decoded_latent() -> None:
    generator = oracle()
    expected = 4 * (images() / 2 + 0.5)
    logits = Teacher(Brightness(), generator).predict_logits(generator.latent_codec.encode(images()))
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)


# ---- the comparison at the end


def test_a_head_that_predicts_what_the_segmentor_does_agrees_in_everything() -> None:
    teacher = Teacher(Brightness(), oracle(num_steps=2))
    data = teacher.prepare(batch(), with_estimates=True)
    agreement = measure_agreement(DecodedBrightness(teacher.generator), teacher, [data, data])
    assert (agreement.images, agreement.clean, agreement.estimates) == (8, 1, 1)
    assert agreement.gradient == pytest.approx(1, abs=1e-5)
    assert agreement.critic_miou == agreement.segmentor_miou
    truth = images().argmax(1)
    intersections = [((truth == k) & (data.masks == k)).sum() / ((truth == k) | (data.masks == k)).sum()
                     for k in range(3)]
    assert agreement.segmentor_miou == pytest.approx(float(torch.stack(intersections).mean()), abs=0.02)


def test_what_is_not_labelled_does_not_count_for_the_miou() -> None:
    teacher = Teacher(Brightness(), oracle(num_steps=1))
    data = teacher.prepare(batch(), with_estimates=True)
    masks = torch.where(torch.rand(data.masks.shape) < 0.5, teacher.predict_logits(data.clean).argmax(1), 255)
    right = DistillationBatch(data.clean, masks, data.estimates)
    assert measure_agreement(DecodedBrightness(teacher.generator), teacher, [right]).segmentor_miou == 1


def test_an_untrained_head_does_not_agree() -> None:
    teacher = Teacher(Brightness(), oracle(num_steps=1))
    data = teacher.prepare(batch(), with_estimates=True)
    torch.manual_seed(0)
    agreement = measure_agreement(LatentCritic(48, 4, 3, 8), teacher, [data])
    assert agreement.clean < 0.6 and abs(agreement.gradient) < 0.5
    assert 'of real images' in str(agreement) and f'{agreement.gradient:.2f}' in str(agreement)


# ---- from config to file


@pytest.fixture(scope='module')
def trained(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('latent_critic') / 'new' / 'head.safetensors'
    train_latent_critic(small_run.config(), small_run.generator, out, iters=3, width=8)
    return out


def test_the_file_is_all_that_a_config_needs(small_run: SmallRun, trained: Path, tmp_path: Path) -> None:
    line = dict(_delete_=True, type='mmsynth.LatentCritic', checkpoint=str(trained))
    cfg = small_run.config(synthesis__guidance__critic=line)
    pool = small_run.synthesize(tmp_path / 'pool', cfg)
    trace = [step for record in pool.records for step in pool.load_trace(record)]
    assert isinstance(pool, Pool) and all(step['relative_change'] > 0 and step['skipped'] == 0 for step in trace)


def test_the_file_says_where_it_comes_from(small_run: SmallRun, trained: Path) -> None:
    with safe_open(trained, framework='pt') as file:
        origin = json.loads(file.metadata()['origin'])
    assert origin['critic']['type'] == 'mmsynth.SegmentorCritic' and origin['iters'] == 3
    assert origin['agreement']['images'] == 1 and 0 <= origin['agreement']['estimates'] <= 1
    critic = MODELS.build(dict(type='mmsynth.LatentCritic', checkpoint=str(trained)))
    assert critic.settings == dict(channels=4, factor=4, num_classes=3, width=8, ignore_index=255)


def test_a_seed_gives_the_same_head_and_another_not(small_run: SmallRun, trained: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train_latent_critic(small_run.config(), small_run.generator, tmp_path / f'{seed}.safetensors', iters=3, width=8,
                            seed=seed)
    heads = [LatentCritic(checkpoint=str(path)).head.weight for path in (
        trained, tmp_path / '0.safetensors', tmp_path / '1.safetensors')]
    assert torch.equal(heads[0], heads[1]) and not torch.allclose(heads[0], heads[2], atol=1e-2)


def test_training_brings_the_head_to_the_segmentor(small_run: SmallRun, tmp_path: Path) -> None:
    """Without the masks, from which a segmentor of two iterations knows little."""
    few, many = (train_latent_critic(small_run.config(), small_run.generator, tmp_path / f'{iters}.safetensors',
                                     iters=iters, width=16, mask_weight=0) for iters in (1, 100))
    assert many.clean > few.clean + 0.1 and many.estimates > few.estimates + 0.1


def test_training_brings_the_head_to_the_masks(small_run: SmallRun, tmp_path: Path) -> None:
    few, many = (train_latent_critic(small_run.config(), small_run.generator, tmp_path / f'{iters}.safetensors',
                                     iters=iters, width=16, mask_weight=10) for iters in (1, 100))
    assert many.critic_miou > few.critic_miou + 0.2


def test_a_validation_split_is_what_is_held_out(small_run: SmallRun, tmp_path: Path) -> None:
    cfg = small_run.config()
    cfg.val_dataloader = dict(dataset=cfg.train_dataloader.dataset)
    assert train_latent_critic(cfg, small_run.generator, tmp_path / 'head.safetensors', iters=1, width=8).images == 4


def test_the_tool_trains_and_says_how_well(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, 'argv', [
        'train_latent_critic.py', str(small_run.config_file), str(small_run.generator), '--out',
        str(tmp_path / 'head.safetensors'), '--iters', '2', '--width', '8', '--batch-size', '2', '--device', 'cpu',
        '--cfg-options', f'model.num_steps={SAMPLING_STEPS - 1}'])
    runpy.run_path(str(ROOT / 'tools' / 'train_latent_critic.py'), run_name='__main__')
    output = capsys.readouterr()
    assert '1 held-out images' in output.out and 'mIoU against the masks' in output.out
    assert 'latent critic: 100%' in output.err and (tmp_path / 'head.safetensors').is_file()


# ---- mistakes


def test_options_and_config_are_checked_before_anything_is_built(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='`iters`.* 0; `batch_size`.* -1; `mask_weight`.* -0.5; `out`.* head.pth'):
        train_latent_critic(small_run.config(), 'gone.pth', 'head.pth', iters=0, batch_size=-1, mask_weight=-0.5)
    with pytest.raises(ValueError, match='`synthesis.guidance.critic`.*`train_dataloader`'):
        train_latent_critic(Config(dict(model=dict())), 'gone.pth', 'head.safetensors')
    (tmp_path / 'head.safetensors').write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='head.safetensors exists'):
        train_latent_critic(small_run.config(), 'gone.pth', tmp_path / 'head.safetensors')
    assert (tmp_path / 'head.safetensors').read_bytes() == b'mine'


def test_a_latent_critic_cannot_teach(small_run: SmallRun, trained: Path, tmp_path: Path) -> None:
    line = dict(_delete_=True, type='mmsynth.LatentCritic', checkpoint=str(trained))
    with pytest.raises(ValueError, match='`synthesis.guidance.critic` is a LatentCritic'):
        train_latent_critic(small_run.config(synthesis__guidance__critic=line), small_run.generator,
                            tmp_path / 'head.safetensors')
    assert not (tmp_path / 'head.safetensors').exists()
