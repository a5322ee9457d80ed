"""What all guidance shares: which input the critic is given, what it looks through, and what fits together."""
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_critic import CHANNELS, LatentReader, ToyCritic, batch, decode, step_at

from mmsynth.guidance import CRFM, BestOfN, Critic, Guidance, GuidanceDecoder
from mmsynth.registry import MODELS


@MODELS.register_module(name='TestDarker')
class Darker(GuidanceDecoder):
    """Sees the codec's images at half their contrast; takes four latent channels."""

    def around(self, decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda latents: decode(latents) / 2

    def check_latents(self, channels: int, factor: int) -> None:
        if channels != CHANNELS:
            raise ValueError(f'Darker takes latents of {CHANNELS} channels, got {channels}.')


class TestJudge:

    def test_images_are_decoded_and_brought_to_zero_and_one(self) -> None:
        _, latents, masks = batch()
        seen = Guidance(ToyCritic()).judge(latents, decode, masks)
        assert torch.equal(seen.loss, ToyCritic()(decode(latents) / 2 + 0.5, masks).loss)

    def test_a_decoder_stands_in_for_the_codec_s_decode(self) -> None:
        _, latents, masks = batch()
        seen = Guidance(ToyCritic(), Darker()).judge(latents, decode, masks)
        assert torch.equal(seen.loss, ToyCritic()(decode(latents) / 4 + 0.5, masks).loss)

    def test_a_critic_of_latents_is_given_latents(self) -> None:
        _, latents, masks = batch()
        seen = Guidance(LatentReader()).judge(latents, None, masks)
        expected = F.cross_entropy(F.interpolate(latents[:, :3], scale_factor=2), masks, reduction='none')
        torch.testing.assert_close(seen.loss, expected)

    @pytest.mark.parametrize('guidance', [
        CRFM(ToyCritic(), decoder=Darker(), measure_after=True), CRFM(LatentReader(), measure_after=True)],
                             ids=['decoder', 'latents'])
    def test_crfm_follows_what_the_critic_sees(self, guidance: CRFM) -> None:
        prediction, latents, masks = batch()
        _, records = guidance.correct(prediction, step_at(latents), decode, masks)
        before = guidance.judge(step_at(latents).clean_estimate(prediction), decode, masks)
        assert [record['loss_before'] for record in records] == pytest.approx(before.mean_loss.tolist())
        assert all(record['loss_after'] < record['loss_before'] for record in records)


class TestFit:

    def test_parts_may_be_configs(self) -> None:
        config = dict(type='mmsynth.CRFM', critic=ToyCritic(), decoder=dict(type='mmsynth.TestDarker'))
        assert isinstance(MODELS.build(config).decoder, Darker)

    @pytest.mark.parametrize('guidance', [CRFM(ToyCritic()), BestOfN(ToyCritic())], ids=['CRFM', 'BestOfN'])
    def test_what_fits_passes(self, guidance: Guidance) -> None:
        guidance.check_fit(3, channels=CHANNELS, factor=2)
        guidance.check_run(1)

    @pytest.mark.parametrize('critic, decoder, message', [
        (ToyCritic(), None, 'the segmentor has 3 classes, the data set has 4. Use a segmentor trained on the same'),
        (LatentReader(), None, 'LatentReader reads 4 channels and 2 pixels per cell, got 16, 8'),
        (ToyCritic(), Darker(), 'Darker takes latents of 4 channels, got 16'),
    ])
    def test_what_does_not_fit_is_named(self, critic: Critic, decoder: GuidanceDecoder | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Guidance(critic, decoder).check_fit(4 if 'classes' in message else 3, channels=16, factor=8)

    @pytest.mark.parametrize('kind', [CRFM, BestOfN])
    def test_a_decoder_for_a_critic_of_latents_is_refused(self, kind: type[Guidance]) -> None:
        with pytest.raises(ValueError, match='`decoder`'):
            kind(LatentReader(), decoder=Darker())
