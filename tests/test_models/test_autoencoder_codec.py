"""The codec with a decoder that looks beyond a patch: its linear part in closed form, what the whole learns."""
from pathlib import Path

import pytest
import torch
from small_run import SmallRun, train
from torch import Tensor, nn

from mmsynth.models import AutoencoderCodec, PatchPCACodec
from mmsynth.registry import MODELS
from mmsynth.utils import read_checkpoint

CHANNELS = 6


def pictures(count: int, seed: int = 0, size: int = 32) -> Tensor:
    """Smooth images (N, 3, size, size) in [-1, 1]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, size=(size, size), mode='bicubic').clamp(-1, 1)


def build(**settings: object) -> AutoencoderCodec:
    return MODELS.build(dict(type='mmsynth.AutoencoderCodec', channels=CHANNELS, iterations=80) | settings)


def pca(patch_size: int = 4) -> PatchPCACodec:
    codec = PatchPCACodec(patch_size, CHANNELS, whitening=0.5)
    codec.fit(pictures(64))
    return codec


@pytest.fixture(scope='module', params=[4, 8])
def fitted(request: pytest.FixtureRequest) -> AutoencoderCodec:
    codec = build(patch_size=request.param)
    codec.fit(pictures(64))
    return codec


def disturbed(codec: PatchPCACodec, images: Tensor) -> Tensor:
    """Latents of images under white noise, as those of a generator are."""
    latents = codec.encode(images)
    return latents + 0.8 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))


def seams(images: Tensor, side: int) -> float:
    """Mean absolute step across the borders of patches, over that inside of them."""
    steps = images.diff(dim=-1).abs().mean((0, 1, 2))
    border = torch.arange(len(steps)) % side == side - 1
    return float(steps[border].mean() / steps[~border].mean())


def test_the_filter_is_the_ridge_regression_of_patches_on_the_cells_around() -> None:
    images, codec = pictures(8), build(noise=0.7)
    PatchPCACodec.fit(codec, images)
    codec._fit_filter(images)
    padded = nn.functional.pad(codec.encode(images), (2, ) * 4, mode='replicate')
    cells = padded.unfold(2, 5, 1).unfold(3, 5, 1).movedim(1, 3).flatten(3).flatten(0, 2).double()
    patches = nn.functional.pixel_unshuffle(images, 4).movedim(1, -1).flatten(0, 2).double() - codec.mean
    ridge = 0.7 * len(cells)**0.5 * torch.eye(cells.shape[1], dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([cells, ridge]), torch.cat([patches, torch.zeros(len(ridge), 48)])).solution
    torch.testing.assert_close(codec.filter.flatten(1).double(), expected.T, atol=1e-5, rtol=1e-4)


def test_with_all_components_and_next_to_no_noise_the_filter_inverts() -> None:
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    codec = build(channels=48, noise=1e-3)
    PatchPCACodec.fit(codec, images)
    codec._fit_filter(images)
    unseen = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(codec.decode(codec.encode(unseen)), unseen, atol=1e-3, rtol=0)


def test_its_latents_are_those_of_the_linear_codec(fitted: AutoencoderCodec) -> None:
    images = pictures(4, seed=1)
    assert torch.equal(fitted.encode(images), pca(fitted.factor).encode(images))
    assert tuple(fitted.encode(images).shape[1:]) == fitted.latent_shape(32, 32)


def test_disturbed_latents_of_unseen_images_decode_better_and_without_seams(fitted: AutoencoderCodec) -> None:
    images, linear = pictures(32, seed=1), pca(fitted.factor)
    latents = disturbed(linear, images)
    errors = [(codec.decode(latents) - images).square().mean() for codec in (fitted, linear)]
    visible = [seams(codec.decode(latents), fitted.factor) for codec in (fitted, linear)]
    assert errors[0] < 0.8 * errors[1]
    assert abs(visible[0] - 1) < 0.5 * abs(visible[1] - 1)


@torch.no_grad()
def test_the_share_it_keeps_is_that_of_the_error() -> None:
    images, codec = pictures(16), build(iterations=3)
    share = codec.fit(images)
    error = (codec.decode(codec.encode(images)) - images).square().mean()
    total = (images - images.mean((0, 2, 3), keepdim=True)).square().mean()
    assert share == pytest.approx(1 - float(error / total), abs=1e-4) and 0.5 < share < 1


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
    loaded = build(patch_size=fitted.factor)
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
    assert 0.5 < codec.fit(pictures(3, size=64)) < 1


def test_use_before_fit_is_refused() -> None:
    with pytest.raises(ValueError, match='AutoencoderCodec is not fitted: .*FitLatentCodecHook'):
        build().decode(torch.zeros(1, CHANNELS, 2, 2))


@pytest.mark.parametrize('settings, message', [
    (dict(patch_size=6), '`patch_size` must be 4 or 8, got 6'),
    (dict(channels=49), r'`channels` must be in \[1, 48\]'),
    (dict(whitening=2), '`whitening`'),
    (dict(iterations=0), '`noise` must be above 0 and `iterations` at least 1, got 0.8 and 0'),
    (dict(noise=0), '`noise` must be above 0'),
])
def test_options_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_generator_trains_on_it_and_a_resume_leaves_it_alone(small_run: SmallRun, tmp_path: Path) -> None:
    options = {'model.latent_codec.type': 'mmsynth.AutoencoderCodec', 'model.latent_codec.iterations': 2,
               'train_cfg.max_iters': 1}
    codec = train(small_run.config_file, tmp_path, options).model.latent_codec
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    assert before['fitted'] and before['decoder.layers.0.weight'].abs().sum() > 0
    options |= {'model.latent_codec.iterations': 7, 'train_cfg.max_iters': 2, 'resume': True}  # would fit otherwise
    after = train(small_run.config_file, tmp_path, options).model.latent_codec.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
