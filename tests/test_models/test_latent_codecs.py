"""Latent codecs: PatchPCA in closed form, the VAE's scale and shift against diffusers."""
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mmsynth.models import PatchPCACodec, VAECodec
from mmsynth.models.encoders import LatentCodec
from mmsynth.registry import MODELS

VAE = dict(
    down_block_types=('DownEncoderBlock2D', ) * 2,
    up_block_types=('UpDecoderBlock2D', ) * 2,
    block_out_channels=(8, 8),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    scaling_factor=1.5,
    shift_factor=0.25)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pictures(count: int = 6, size: int = 16) -> Tensor:
    """Smooth images with some noise, in [-1, 1], so that patches have principal components worth the name."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode='bilinear')
    return (smooth + 0.1 * torch.rand(count, 3, size, size, generator=generator)).clamp(0, 1) * 2 - 1


def fitted(channels: int = 8, patch_size: int = 4) -> PatchPCACodec:
    codec = PatchPCACodec(patch_size, channels)
    codec.fit(pictures())
    return codec


class TestPatchPCA:

    @pytest.mark.parametrize('channels', [1, 8, 48])
    def test_latents_of_the_fitted_images_are_white(self, channels: int) -> None:
        latents = fitted(channels).encode(pictures()).movedim(1, -1).flatten(0, -2).double()
        torch.testing.assert_close(latents.mean(0), torch.zeros(channels).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.T.cov().reshape(channels, channels), torch.eye(channels).double(),
                                   atol=1e-3, rtol=0)

    @pytest.mark.parametrize('patch_size', [1, 2, 4])
    def test_with_all_components_the_round_trip_is_exact(self, patch_size: int) -> None:
        codec = fitted(3 * patch_size**2, patch_size)
        unseen = torch.rand(2, 3, 8, 12) * 2 - 1
        torch.testing.assert_close(codec.decode(codec.encode(unseen)), unseen, atol=1e-4, rtol=0)

    def test_the_share_it_keeps_is_that_of_the_error(self) -> None:
        images, codec = pictures(), PatchPCACodec(4, 5)
        share = codec.fit(images)
        error = (codec.decode(codec.encode(images)) - images).square().mean()
        patches = nn.functional.pixel_unshuffle(images, 4)
        total = (patches - patches.mean((0, 2, 3), keepdim=True)).square().mean()
        assert share == pytest.approx(1 - float(error / total), abs=1e-4) and 0.5 < share < 1

    def test_more_components_keep_more(self) -> None:
        shares = [PatchPCACodec(4, channels).fit(pictures()) for channels in (1, 4, 16, 48)]
        assert shares == sorted(shares) and shares[-1] == pytest.approx(1)

    def test_decoding_is_differentiable_and_linear(self) -> None:
        codec = fitted()
        latents = torch.randn(1, 8, 2, 3, requires_grad=True)
        probe = torch.randn(1, 3, 8, 12)
        gradient, = torch.autograd.grad((codec.decode(latents) * probe).sum(), latents)
        change = torch.randn_like(latents)
        slope = ((codec.decode(latents + change) - codec.decode(latents)) * probe).sum()
        torch.testing.assert_close(slope, (gradient * change).sum(), atol=1e-4, rtol=1e-4)
        assert not codec.encode(pictures()).requires_grad

    def test_a_latent_cell_is_a_patch(self) -> None:
        codec, images = fitted(), pictures(1)
        latents = codec.encode(images)
        images[..., 4:8, 8:12] += 0.5
        changed = (codec.encode(images) != latents).any(1)[0].nonzero().tolist()
        assert latents.shape == (1, *codec.latent_shape(16, 16)) == (1, 8, 4, 4) and changed == [[1, 2]]

    def test_a_second_fit_gives_the_same_and_a_flip_of_order_too(self) -> None:
        first, again, shuffled = fitted(), fitted(), PatchPCACodec(4, 8)
        shuffled.fit(pictures().flip(0))
        for key, value in first.state_dict().items():
            assert torch.equal(value, again.state_dict()[key])
            torch.testing.assert_close(shuffled.state_dict()[key], value, atol=1e-4, rtol=1e-4)

    def test_components_are_orthonormal_with_their_largest_entry_positive(self) -> None:
        """An eigenvector has no sign of its own; latents must not depend on the machine's choice."""
        components = fitted().components
        torch.testing.assert_close(components @ components.T, torch.eye(8), atol=1e-5, rtol=0)
        assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()

    def test_a_refit_forgets_the_first_fit(self) -> None:
        codec = PatchPCACodec(4, 8)
        codec.fit(-pictures().flip(1) / 2)
        codec.fit(pictures())
        assert all(torch.equal(value, fitted().state_dict()[key]) for key, value in codec.state_dict().items())

    def test_a_checkpoint_carries_the_fit(self) -> None:
        codec = PatchPCACodec(4, 8)
        codec.load_state_dict(fitted().state_dict())
        assert torch.equal(codec.encode(pictures()), fitted().encode(pictures()))

    def test_constant_images_stay_finite(self) -> None:
        codec = PatchPCACodec(2, 12)
        share = codec.fit(torch.full((2, 3, 4, 4), 0.5))
        latents = codec.encode(torch.full((1, 3, 4, 4), 0.5))
        assert 0 <= share <= 1 and latents.isfinite().all()
        torch.testing.assert_close(codec.decode(latents), torch.full((1, 3, 4, 4), 0.5))

    def test_use_before_fit_is_refused(self) -> None:
        codec = PatchPCACodec()
        for call in (lambda: codec.encode(pictures()), lambda: codec.decode(torch.zeros(1, 16, 2, 2))):
            with pytest.raises(ValueError, match='PatchPCACodec is not fitted: .*FitLatentCodecHook'):
                call()

    @pytest.mark.parametrize('channels', [0, 49])
    def test_more_components_than_values_are_refused(self, channels: int) -> None:
        with pytest.raises(ValueError, match=rf'`channels`.*\[1, 48\] .* got {channels}'):
            PatchPCACodec(4, channels)


class TestVAE:

    @pytest.fixture(scope='class')
    def codec(self) -> VAECodec:
        torch.manual_seed(0)
        return MODELS.build(dict(type='mmsynth.VAECodec', config=VAE))

    @torch.no_grad()
    def test_scale_and_shift_are_diffusers(self, codec: VAECodec) -> None:
        images = pictures(2)
        mode = codec.vae.encode(images).latent_dist.mode()
        torch.testing.assert_close(codec.encode(images), (mode - 0.25) * 1.5)
        latents = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(codec.decode(latents), codec.vae.decode(latents / 1.5 + 0.25).sample)
        assert codec.latent_shape(16, 16) == (4, 8, 8) == tuple(codec.encode(images).shape[1:])

    def test_without_a_shift_there_is_none(self) -> None:
        """As in Stable Diffusion 1.5, whose config knows no such key."""
        codec = VAECodec(config={**VAE, 'shift_factor': None})
        images = pictures(1)
        torch.testing.assert_close(codec.encode(images), codec.vae.encode(images).latent_dist.mode() * 1.5)

    def test_samples_spread_around_the_mode_as_the_posterior_says(self, codec: VAECodec) -> None:
        images = pictures(1)
        with torch.no_grad():
            deviation = codec.vae.encode(images).latent_dist.std * 1.5
        assert torch.equal(codec.encode(images), codec.encode(images))
        torch.manual_seed(0)
        draws = torch.cat([codec.encode(images.expand(64, -1, -1, -1), generator=torch.Generator().manual_seed(seed))
                           for seed in range(4)])
        standard = (draws - codec.encode(images)) / deviation
        assert standard.mean() == pytest.approx(0, abs=0.02) and standard.std() == pytest.approx(1, abs=0.02)

    def test_it_is_frozen_but_lets_gradients_through_its_decoder(self, codec: VAECodec) -> None:
        assert not any(parameter.requires_grad for parameter in codec.parameters())
        latents = torch.randn(1, 4, 4, 4, requires_grad=True)
        codec.decode(latents).square().sum().backward()
        assert latents.grad.abs().min() > 0
        assert not codec.encode(pictures(1).requires_grad_()).requires_grad

    def test_it_stays_in_eval_mode_inside_a_model_in_training(self, codec: VAECodec) -> None:
        parent = nn.ModuleList([codec, nn.Dropout()]).train()
        assert parent[1].training and not any(module.training for module in codec.modules())

    def test_a_folder_gives_weights_and_scale(self, tiny_sd3: Path) -> None:
        codec, vae = VAECodec(pretrained=str(tiny_sd3)), AutoencoderKL.from_pretrained(tiny_sd3, subfolder='vae')
        assert all(torch.equal(value, codec.vae.state_dict()[key]) for key, value in vae.state_dict().items())
        assert (codec.channels, codec.factor, codec.scale, codec.shift) == (4, 4, 1.5305, 0.0609)

    @pytest.mark.parametrize('settings', [dict(), dict(pretrained='x', config=VAE)])
    def test_exactly_one_source_is_needed(self, settings: dict) -> None:
        with pytest.raises(ValueError, match='`pretrained` and `config`'):
            VAECodec(**settings)

    def test_a_folder_without_vae_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f'the folder {tmp_path} has no `vae` in it'):
            VAECodec(pretrained=str(tmp_path))


class TestCheckpointing:

    @pytest.fixture(scope='class')
    @staticmethod
    def codecs() -> tuple[VAECodec, VAECodec]:
        """Without and with, of the same weights; frozen and in eval mode, as a model in training has them."""
        plain, checkpointed = VAECodec(config=VAE), VAECodec(config=VAE, gradient_checkpointing=True)
        checkpointed.load_state_dict(plain.state_dict())
        nn.ModuleList([plain, checkpointed]).train()
        return plain, checkpointed

    def test_images_and_gradients_are_the_same(self, codecs: tuple[VAECodec, VAECodec]) -> None:
        latents, probe = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16, 16)
        images, gradients = zip(*(differentiate(codec, latents, probe) for codec in codecs))
        assert torch.equal(*images) and gradients[0].abs().min() > 0
        torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=0)

    def test_it_keeps_less_for_the_backward_pass(self, codecs: tuple[VAECodec, VAECodec]) -> None:
        plain, checkpointed = (saved_bytes(codec, torch.randn(1, 4, 16, 16)) for codec in codecs)
        assert 0 < checkpointed < plain / 3

    @pytest.mark.parametrize('row, passes', [(0, 1), (1, 2)])
    def test_a_block_is_computed_again_only_for_a_gradient(self, codecs: tuple[VAECodec, VAECodec], row: int,
                                                           passes: int) -> None:
        calls = []
        block = codecs[row].vae.decoder.up_blocks[-1]
        handle = block.register_forward_pre_hook(lambda *_: calls.append(1))  # torch stops the second pass early
        differentiate(codecs[row], torch.randn(1, 4, 4, 4), torch.ones(1, 3, 8, 8))
        assert len(calls) == passes
        with torch.no_grad():
            codecs[row].decode(torch.randn(1, 4, 4, 4))
        handle.remove()
        assert len(calls) == passes + 1

    def test_its_layers_stay_in_eval_mode(self, codecs: tuple[VAECodec, VAECodec]) -> None:
        decoder = codecs[1].vae.decoder
        assert not any(module.training for module in codecs[1].modules() if module is not decoder)
        assert not any(parameter.requires_grad for parameter in codecs[1].parameters())


def differentiate(codec: VAECodec, latents: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The images, and the gradient of ``sum(images * probe)`` by the latents."""
    latents = latents.clone().requires_grad_()
    images = codec.decode(latents)
    return images.detach(), torch.autograd.grad((images * probe).sum(), latents)[0]


def saved_bytes(codec: VAECodec, latents: Tensor) -> int:
    """What a decode keeps for its backward pass, beside the weights."""
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in codec.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = codec.decode(latents.clone().requires_grad_())
    del images
    return sum(kept.values())


@pytest.mark.parametrize('build', [fitted, lambda: VAECodec(config=VAE)], ids=['pca', 'vae'])
class TestBoth:

    def test_a_size_that_is_no_multiple_is_named(self, build: type[LatentCodec]) -> None:
        codec = build()
        message = f'image size 15x16: both sides must be multiples of {codec.factor}.*Resize or crop'
        with pytest.raises(ValueError, match=message):
            codec.latent_shape(15, 16)
        with pytest.raises(ValueError, match=message):
            codec.encode(torch.zeros(1, 3, 15, 16))

    def test_a_batch_of_two_is_two_batches_of_one(self, build: type[LatentCodec]) -> None:
        codec, images = build(), pictures(2)
        latents = codec.encode(images)
        torch.testing.assert_close(latents[1:], codec.encode(images[1:]), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(codec.decode(latents)[1:], codec.decode(latents[1:]), atol=1e-5, rtol=1e-5)


def test_the_interface_alone_does_nothing() -> None:
    with pytest.raises(TypeError, match='LatentCodec does not encode'):
        LatentCodec().encode(pictures())
    with pytest.raises(TypeError, match='LatentCodec does not decode'):
        LatentCodec().decode(torch.zeros(1, 4, 2, 2))


def test_less_whitening_keeps_the_components_order_and_unit_variance_on_average() -> None:
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cumsum(3) / 16 - 1
    variances = {}
    for whitening in (0.0, 0.5, 1.0):
        codec = PatchPCACodec(4, 6, whitening=whitening)
        codec.fit(images)
        variances[whitening] = codec.encode(images).movedim(1, 0).flatten(1).var(1)
        assert variances[whitening].mean() == pytest.approx(1, abs=1e-2)
        assert torch.allclose(codec.encode(codec.decode(codec.encode(images))), codec.encode(images), atol=1e-4)
    assert (variances[0.0].diff() < 0).all()
    assert torch.allclose(variances[0.5], variances[0.0].sqrt() / variances[0.0].sqrt().mean(), rtol=1e-2)


def test_whitening_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r'`whitening` must be in \[0, 1\], got 2'):
        PatchPCACodec(whitening=2)
