"""The autoencoder that is fitted on training images: statistics of its latents, what it learns, reproducibility."""
from pathlib import Path

import pytest
import torch
from small_run import SmallRun, train
from torch import Tensor, nn

from mmsynth.models import AutoencoderCodec
from mmsynth.registry import MODELS
from mmsynth.utils import read_checkpoint

CHANNELS = 6


def pictures(count: int, seed: int = 0, size: int = 32) -> Tensor:
    """Smooth images (N, 3, size, size) in [-1, 1]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, size=(size, size), mode='bicubic').clamp(-1, 1)


def build(**settings: object) -> AutoencoderCodec:
    return MODELS.build(dict(type='mmsynth.AutoencoderCodec', channels=CHANNELS, iterations=150) | settings)


@pytest.fixture(scope='module', params=[4, 8])
def fitted(request: pytest.FixtureRequest) -> AutoencoderCodec:
    codec = build(factor=request.param)
    codec.fit(pictures(64))
    return codec


def disturbed(codec: AutoencoderCodec, images: Tensor) -> Tensor:
    """Latents of images under white noise, as those of a generator are."""
    latents = codec.encode(images)
    return latents + 0.3 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))


def test_latents_have_zero_mean_and_on_average_unit_variance(fitted: AutoencoderCodec) -> None:
    latents = fitted.encode(pictures(64))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(CHANNELS), atol=1e-4, rtol=0)
    assert latents.var((0, 2, 3)).mean() == pytest.approx(1, abs=1e-3)
    assert tuple(latents.shape[1:]) == fitted.latent_shape(32, 32)


@torch.no_grad()
def test_unseen_images_come_back_and_noise_on_latents_harms_little(fitted: AutoencoderCodec) -> None:
    images = pictures(32, seed=1)
    clean, noisy = ((fitted.decode(latents) - images).square().mean()
                    for latents in (fitted.encode(images), disturbed(fitted, images)))
    assert clean < 0.8 * images.var() and clean < noisy < clean + 0.1 * images.var()


@torch.no_grad()
def test_the_share_it_keeps_is_that_of_the_error() -> None:
    images, codec = pictures(16), build(iterations=3)
    share = codec.fit(images)
    error = (codec.decode(codec.encode(images)) - images).square().mean()
    total = (images - images.mean((0, 2, 3), keepdim=True)).square().mean()
    assert share == pytest.approx(1 - float(error / total), abs=1e-4) and share < 1


def test_a_fit_depends_on_its_images_only_and_leaves_the_random_state_alone() -> None:
    first, again = build(iterations=3), build(iterations=3)
    first.fit(pictures(16))
    again.fit(pictures(16, seed=5))
    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    again.fit(pictures(16))
    assert torch.rand(()) == expected
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())


def test_a_pixel_depends_on_neighbouring_cells_and_gradients_reach_them(fitted: AutoencoderCodec) -> None:
    latents = fitted.encode(pictures(1, seed=1)).requires_grad_()
    first_patch = fitted.decode(latents)[..., :fitted.factor, :fitted.factor]
    gradient, = torch.autograd.grad(first_patch.sum(), latents)
    assert gradient[0, :, 0, 0].abs().min() > 0 and gradient[0, :, 0, 1].abs().max() > 0
    assert not fitted.encode(pictures(1).requires_grad_()).requires_grad


def test_it_is_frozen_and_stays_in_eval_mode(fitted: AutoencoderCodec) -> None:
    nn.ModuleList([fitted]).train()
    assert not list(fitted.parameters()) and not any(module.training for module in fitted.modules())


def test_a_checkpoint_carries_the_fit(fitted: AutoencoderCodec, tmp_path: Path) -> None:
    torch.save(dict(state_dict=fitted.state_dict()), tmp_path / 'codec.pth')
    loaded = build(factor=fitted.factor)
    loaded.load_state_dict(read_checkpoint(tmp_path / 'codec.pth'))
    latents = disturbed(fitted, pictures(2))
    assert loaded.fitted and torch.equal(loaded.decode(latents), fitted.decode(latents))


def test_a_batch_of_two_is_two_batches_of_one_and_any_size_is_decoded(fitted: AutoencoderCodec) -> None:
    latents = disturbed(fitted, pictures(2, size=48)[..., :24])
    images = fitted.decode(latents)
    assert images.shape == (2, 3, 48, 24)
    torch.testing.assert_close(images, torch.cat([fitted.decode(each[None]) for each in latents]))


def test_images_larger_than_a_crop_are_fitted() -> None:
    codec = build(iterations=2)
    assert codec.fit(pictures(3, size=64)) < 1 and codec.encode(pictures(1, size=64)).isfinite().all()


def test_use_before_fit_is_refused() -> None:
    with pytest.raises(ValueError, match='AutoencoderCodec is not fitted: .*FitLatentCodecHook'):
        build().decode(torch.zeros(1, CHANNELS, 2, 2))


@pytest.mark.parametrize('settings, message', [
    (dict(factor=6), '`factor` must be 4 or 8, got 6'),
    (dict(channels=0), '`channels` and `iterations` must be at least 1'),
    (dict(iterations=0), '`iterations` must be at least 1 and `noise` not negative, got 6, 0 and 0.5'),
    (dict(noise=-0.1), '`noise` not negative'),
])
def test_options_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_generator_trains_on_it_and_a_resume_leaves_it_alone(small_run: SmallRun, tmp_path: Path) -> None:
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = {str(small_run.config_file)!r}\nmodel = dict(latent_codec=dict(\n"
                      "    _delete_=True, type='mmsynth.AutoencoderCodec', channels=4, iterations=2))\n")
    options = {'train_cfg.max_iters': 1}
    codec = train(config, tmp_path, options).model.latent_codec
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    assert before['fitted'] and before['vae.decoder.layers.0.weight'].abs().sum() > 0
    options |= {'model.latent_codec.iterations': 7, 'train_cfg.max_iters': 2, 'resume': True}  # would fit otherwise
    after = train(config, tmp_path, options).model.latent_codec.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
