"""What a critic looks through: the tiny decoder against diffusers, the reduced decode in closed form, within CRFM."""
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from tiny_generator import segmentor
from torch import Tensor

from mmsynth.guidance import ReducedDecoder, TinyDecoder
from mmsynth.registry import MODELS
from mmsynth.sampling import SamplingStep

TINY = dict(
    latent_channels=4,
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1))
TAESD3 = dict(latent_channels=16)  # the rest is AutoencoderTiny's default


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def never(latents: Tensor) -> Tensor:
    raise AssertionError('the codec decodes, though another decoder is set')


def enlarge(latents: Tensor) -> Tensor:
    """A codec of factor 2: three of the channels, enlarged."""
    return F.interpolate(latents[:, :3], scale_factor=2.0, mode='nearest')


class TestTiny:

    def test_it_takes_the_latents_as_they_are(self) -> None:
        """TAESD learned the VAE's scale and shift with the rest: nothing is undone before it."""
        decoder, latents = TinyDecoder(config=TINY), torch.randn(2, 4, 3, 5)
        expected = decoder.tiny.decoder(latents)
        assert torch.equal(decoder.around(never)(latents), expected) and expected.shape == (2, 3, 6, 10)

    def test_a_scale_of_its_own_is_undone(self) -> None:
        plain, latents = TinyDecoder(config=TINY), torch.randn(1, 4, 3, 3)
        scaled = TinyDecoder(config=TINY | dict(scaling_factor=2.0, shift_factor=0.5))
        scaled.load_state_dict(plain.state_dict())
        torch.testing.assert_close(scaled.decode(2 * (latents - 0.5)), plain.decode(latents))

    def test_a_folder_gives_what_diffusers_gives(self, tmp_path: Path) -> None:
        original, latents = AutoencoderTiny(**TINY), torch.randn(1, 4, 4, 4)
        original.save_pretrained(tmp_path)
        decoder = MODELS.build(dict(type='mmsynth.TinyDecoder', pretrained=str(tmp_path)))
        with torch.no_grad():
            assert torch.equal(decoder.decode(latents), original.decode(latents).sample)

    def test_taesd3s_layout_fits_stable_diffusion_3(self) -> None:
        decoder = TinyDecoder(config=TAESD3)
        decoder.check_latents(16, 8)
        assert decoder.decode(torch.randn(1, 16, 4, 4)).shape == (1, 3, 32, 32)

    def test_it_is_frozen_and_stays_in_eval_mode(self) -> None:
        decoder = TinyDecoder(config=TINY).train()
        assert not any(module.training for module in decoder.modules())
        assert not any(parameter.requires_grad for parameter in decoder.parameters())
        latents = torch.randn(1, 4, 2, 2, requires_grad=True)
        decoder.decode(latents).square().sum().backward()
        assert latents.grad.abs().min() > 0

    @pytest.mark.parametrize('channels, factor', [(16, 2), (4, 8)])
    def test_another_codec_is_refused(self, channels: int, factor: int) -> None:
        TinyDecoder(config=TINY).check_latents(4, 2)
        with pytest.raises(ValueError, match=f' 4 channels and 2 pixels .* {channels} and {factor};'):
            TinyDecoder(config=TINY).check_latents(channels, factor)

    @pytest.mark.parametrize('given', [dict(), dict(pretrained='folder', config=TINY)])
    def test_exactly_one_source(self, given: dict) -> None:
        with pytest.raises(ValueError, match='`pretrained` and `config`'):
            TinyDecoder(**given)


class TestReduced:

    @pytest.mark.parametrize('factor', [2, 4])
    def test_a_smooth_codec_loses_the_average_alone(self, factor: int) -> None:
        latents = torch.randn(2, 4, 8, 4)
        means = latents[:, :3].unfold(2, factor, factor).unfold(3, factor, factor).mean((-1, -2))
        image = ReducedDecoder(factor).around(enlarge)(latents)
        assert image.shape == (2, 3, 16, 8)
        torch.testing.assert_close(image, F.interpolate(enlarge(means), (16, 8), mode='bilinear'))

    def test_what_is_constant_is_kept(self) -> None:
        latents = torch.tensor([0.3, -0.5, 0.8, 0.0])[None, :, None, None].expand(1, 4, 4, 4)
        torch.testing.assert_close(ReducedDecoder(2).around(enlarge)(latents), enlarge(latents))

    def test_the_codec_sees_a_smaller_latent(self) -> None:
        seen = []

        def decode(latents: Tensor) -> Tensor:
            seen.append(latents.shape)
            return enlarge(latents)

        ReducedDecoder(4).around(decode)(torch.randn(1, 4, 8, 8))
        assert seen == [(1, 4, 2, 2)]

    @pytest.mark.parametrize('factor', [1, 0, -2, 2.0])
    def test_a_wrong_factor_is_named(self, factor: float) -> None:
        with pytest.raises(ValueError, match=f'`factor`.* got {factor}'):
            ReducedDecoder(factor)

    def test_an_indivisible_latent_is_refused(self) -> None:
        with pytest.raises(ValueError, match='8x6 cells.*`factor` 4'):
            ReducedDecoder(4).around(enlarge)(torch.randn(1, 4, 8, 6))

    def test_any_codec_fits(self) -> None:
        ReducedDecoder(2).check_latents(16, 8)


@pytest.mark.parametrize('decoder', [None, dict(type='mmsynth.TinyDecoder', config=TINY),
                                     dict(type='mmsynth.ReducedDecoder', factor=2)])
def test_crfm_lowers_the_critics_loss_through_each(decoder: dict | None) -> None:
    guidance = MODELS.build(dict(
        type='mmsynth.CRFM', decoder=decoder, objective='mask', step_size=0.02, measure_after=True,
        critic=dict(type='mmsynth.SegmentorCritic', config=dict(model=segmentor()))))
    with torch.no_grad():
        guidance.critic.segmentor.decode_head.conv_seg.weight.normal_(std=3)
    guidance.check_fit(3, channels=4, factor=2)
    masks = torch.randint(3, (2, 16, 16))
    step = SamplingStep(1, 4, torch.randn(2, 4, 8, 8), alpha=0.4, sigma=0.6)
    guide = guidance.bind(never if decoder and 'Tiny' in decoder['type'] else enlarge, masks)
    _, records = guide(torch.randn(2, 4, 8, 8), step)
    assert all(record['loss_after'] < record['loss_before'] and record['relative_change'] > 0 for record in records)
