"""TODSynth generating: against a known answer, guided by prompt and critic, and the message of each mistake."""
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from tiny_generator import CHANNELS, PROMPTS, SIZE, TRUNK, Oracle, images, oracle, samples, segmentor, todsynth
from torch import Tensor, nn

from mmsynth.guidance import CRFM, BestOfN, Guidance, LatentCritic, ReducedDecoder, SegmentorCritic, TinyDecoder
from mmsynth.models import OneHotCodec, PatchPCACodec, TODSynth
from mmsynth.structures import SynthDataSample
from mmsynth.utils import derive_seed

SEEDS = [10, 11, 12, 13]
TINY = dict(latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


class PromptLength(nn.Module):
    """A text encoder whose pooled embedding is the length of the prompt."""

    def encode(self, prompts: list[str]) -> SimpleNamespace:
        pooled = torch.tensor([[float(len(prompt))] for prompt in prompts])
        return SimpleNamespace(prompt_embeds=pooled[:, None], pooled_prompt_embeds=pooled)


class Pooled(Oracle):
    """Answers with the pooled embedding as a constant velocity."""

    def forward(self, latents: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return pooled[:, :, None, None].expand_as(latents)


def generate(model: TODSynth, rows: slice = slice(0, 4), guidance: Guidance | None = None) -> Tensor:
    """Generated images of the rows, each under its own seed"""
    generated = model.synthesize(samples()[rows], SEEDS[rows], guidance=guidance)
    return torch.stack([sample.generated_img.data for sample in generated])


@pytest.fixture(scope='module')
def critic() -> SegmentorCritic:
    torch.manual_seed(0)
    return SegmentorCritic(dict(model=segmentor()))


class TestSynthesis:

    @pytest.mark.parametrize('num_steps', [1, 7])
    def test_the_true_velocity_generates_the_images(self, num_steps: int) -> None:
        """The whole way: seeded noise, sampling, decoding, bytes in RGB."""
        generated = generate(oracle(num_steps=num_steps))
        expected = (images() + 1) * 127.5
        assert generated.dtype == torch.uint8 and (generated - expected).abs().max() < 0.51

    def test_the_batch_makes_no_difference(self) -> None:
        model = todsynth()
        together, alone = generate(model), torch.cat([generate(model, slice(row, row + 1)) for row in range(4)])
        assert (together.int() - alone.int()).abs().max() <= 1  # a grey level where float rounding meets one half
        masks = torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])
        latents, _ = model.sample_latents(samples(), masks, [3, 4, 5, 6], guidance=None)
        one, _ = model.sample_latents(samples()[2:3], masks[2:3], [5], guidance=None)
        torch.testing.assert_close(latents[2:3], one, atol=1e-4, rtol=0)

    def test_seed_mask_and_prompt_each_count(self) -> None:
        model, (sample, *_) = todsynth(), samples()
        first = model.synthesize([sample], [1])[0].generated_img.data
        assert torch.equal(model.synthesize(samples(1), [1])[0].generated_img.data, first)
        other_mask, other_prompt = samples(1)[0], samples(1)[0]
        other_mask.gt_sem_seg = PixelData(data=(sample.gt_sem_seg.data + 1) % 3)
        other_prompt.set_metainfo(dict(prompt='water'))
        for changed, seed in ((sample, 2), (other_mask, 1), (other_prompt, 1)):
            assert not torch.equal(model.synthesize([changed], [seed])[0].generated_img.data, first)

    def test_the_samples_given_come_back_with_image_and_seed(self) -> None:
        given = samples(2)
        generated = todsynth().synthesize(given, [7, 8])
        assert all(sample is own for sample, own in zip(generated, given, strict=True))
        assert [(sample.sample_id, sample.seed) for sample in generated] == [('s0', 7), ('s1', 8)]
        assert generated[0].guidance_trace == generated[1].guidance_trace == []
        assert generated[0].generated_img.data.shape == (3, SIZE, SIZE)

    def test_predict_takes_the_seed_of_the_sample(self) -> None:
        model, given = todsynth(), samples(2)
        given[0].set_metainfo(dict(seed=10))
        generated = model(None, given, mode='predict')
        assert torch.equal(generated[0].generated_img.data, generate(model, slice(0, 1))[0])
        assert generated[1].seed == derive_seed(0, 'predict', 's1')

    def test_the_global_random_state_is_not_used(self) -> None:
        model = todsynth()
        state = torch.get_rng_state()
        generate(model)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('name', ['FlowMatchHeunDiscreteScheduler', 'DPMSolverMultistepScheduler'])
class TestSamplers:

    @pytest.mark.parametrize('num_steps', [1, 7])
    def test_the_true_velocity_generates_the_images(self, name: str, num_steps: int) -> None:
        generated = generate(oracle(sampler=dict(type=name), num_steps=num_steps))
        assert (generated - (images() + 1) * 127.5).abs().max() < 0.51

    def test_guidance_lowers_the_critic_s_loss_at_every_step(self, critic: SegmentorCritic, name: str) -> None:
        model = todsynth(sampler=dict(type=name), guidance_scale=2.0)
        masks = torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])
        guidance = CRFM(critic, steps=3, step_size=0.3, objective='mask', measure_after=True)
        generated = model.synthesize(samples(), SEEDS, guidance=guidance)
        guided = torch.stack([sample.generated_img.data for sample in generated])
        before, after = (critic(pixels / 255, masks).mean_loss for pixels in (generate(model), guided))
        assert after.sum() < before.sum()
        assert [[record['step'] for record in sample.guidance_trace] for sample in generated] == [[0, 1, 2]] * 4
        assert all(r['loss_after'] < r['loss_before'] for sample in generated for r in sample.guidance_trace)
        assert torch.equal(generate(model, guidance=CRFM(critic, steps=0)), generate(model))

    @pytest.mark.parametrize('settings', [dict(), dict(recurrence=2)], ids=str)
    def test_four_guided_samples_are_four_times_one(self, critic: SegmentorCritic, name: str, settings: dict) -> None:
        model, guidance = todsynth(sampler=dict(type=name)), CRFM(critic, objective='mask', **settings)
        masks = torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])
        together, _ = model.sample_latents(samples(), masks, SEEDS, guidance=guidance)
        for row in range(4):
            one = slice(row, row + 1)
            alone, _ = model.sample_latents(samples()[one], masks[one], SEEDS[one], guidance=guidance)
            torch.testing.assert_close(together[one], alone, atol=1e-4, rtol=0)

    def test_training_does_not_depend_on_it(self, name: str) -> None:
        losses = []
        for sampler in (None, dict(type=name)):
            model = todsynth(sampler=sampler)
            torch.manual_seed(3)
            losses.append(model.loss(images(), samples())['loss_velocity'])
        assert torch.equal(*losses)


class TestPromptGuidance:

    def test_with_the_empty_prompt_it_changes_nothing(self) -> None:
        empty = [sample.new(metainfo=dict(prompt='')) for sample in samples()]
        plain, guided = (todsynth(guidance_scale=scale).synthesize(empty, [1, 2, 3, 4]) for scale in (1.0, 5.0))
        assert all(torch.equal(a.generated_img.data, b.generated_img.data) for a, b in zip(plain, guided))

    @pytest.mark.parametrize('scale', [1.0, 2.5])
    def test_it_goes_beyond_the_prompt_s_velocity_by_its_scale(self, scale: float) -> None:
        """With velocity = length of the prompt, 0 for the empty one, the end is ``noise - scale * length``."""
        parts = Pooled(torch.ones(1)), PatchPCACodec(4, 48), OneHotCodec(3), PromptLength()
        masks = torch.zeros(4, SIZE, SIZE).long()
        latents, _ = TODSynth(*parts, guidance_scale=scale).sample_latents(samples(), masks, SEEDS, guidance=None)
        noise = torch.stack([torch.randn(48, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
        lengths = torch.tensor([float(len(prompt)) for prompt in PROMPTS])[:, None, None, None]
        torch.testing.assert_close(latents, noise - scale * lengths, atol=1e-3, rtol=0)


class TestTaskGuidance:

    def test_no_guided_steps_are_bit_equal_to_none(self, critic: SegmentorCritic) -> None:
        model = todsynth()
        assert torch.equal(generate(model, guidance=CRFM(critic, steps=0)), generate(model))

    def test_it_lowers_the_critic_s_loss_and_leaves_a_trace(self, critic: SegmentorCritic) -> None:
        model, masks = todsynth(), torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])
        guidance = CRFM(critic, steps=3, step_size=0.3, objective='mask', measure_after=True)
        generated = model.synthesize(samples(), SEEDS, guidance=guidance)
        guided = torch.stack([sample.generated_img.data for sample in generated])
        before, after = (critic(pixels / 255, masks).mean_loss for pixels in (generate(model), guided))
        assert after.sum() < before.sum()
        assert [[record['step'] for record in sample.guidance_trace] for sample in generated] == [[0, 1, 2]] * 4
        assert all(r['loss_after'] < r['loss_before'] for sample in generated for r in sample.guidance_trace)

    def test_the_batch_makes_no_difference(self, critic: SegmentorCritic) -> None:
        model, guidance = todsynth(guidance_scale=2.0), CRFM(critic)
        together = generate(model, guidance=guidance)
        alone = torch.cat([generate(model, slice(row, row + 1), guidance) for row in range(4)])
        assert (together.int() - alone.int()).abs().max() <= 1

    @pytest.mark.parametrize('settings', [
        dict(), dict(num_rectified=2, steps=2), dict(norm='l2', step_size=1.0), dict(recurrence=2, adaptive=True)
    ], ids=str)
    def test_with_prompt_guidance_four_samples_are_four_times_one(self, critic: SegmentorCritic,
                                                                  settings: dict) -> None:
        """Prompts of several lengths, one of them empty; latents, so that no rounding to bytes hides a difference."""
        model, guidance = todsynth(guidance_scale=3.0), CRFM(critic, objective='mask', measure_after=True, **settings)
        masks = torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])
        together, traces = model.sample_latents(samples(), masks, SEEDS, guidance=guidance)
        for row in range(4):
            one = slice(row, row + 1)
            alone, trace = model.sample_latents(samples()[one], masks[one], SEEDS[one], guidance=guidance)
            torch.testing.assert_close(together[one], alone, atol=1e-4, rtol=0)
            assert [record['skipped'] for record in trace[0]] == [0] * len(trace[0]) and trace[0]
            losses = [[record['loss_after'] for record in records] for records in (trace[0], traces[row])]
            assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        plain, _ = model.sample_latents(samples(), masks, SEEDS, guidance=None)
        assert ((together - plain).flatten(1).norm(dim=1) > 1e-2).all()

    def test_another_sample_s_mask_and_seed_make_no_difference(self, critic: SegmentorCritic) -> None:
        model, guidance = todsynth(guidance_scale=3.0), CRFM(critic)
        masks = torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])
        first, _ = model.sample_latents(samples(), masks, SEEDS, guidance=guidance)
        changed = masks.clone()
        changed[1:] = 255
        second, _ = model.sample_latents(samples(), changed, [SEEDS[0], 1, 2, 3], guidance=guidance)
        torch.testing.assert_close(first[0], second[0], atol=1e-4, rtol=0)
        assert (first[1:] - second[1:]).abs().amax() > 0.1

    @pytest.mark.parametrize('parts, message', [
        (lambda critic: dict(critic=LatentCritic(CHANNELS, 8, 3)),
         "it takes latents of 6 channels and 8 pixels per cell, the generator's codec has 6 and 4"),
        (lambda critic: dict(critic=critic, decoder=TinyDecoder(config=TINY)), 'TinyDecoder'),
    ], ids=['critic', 'decoder'])
    @pytest.mark.parametrize('kind', [CRFM, BestOfN])
    def test_parts_for_other_latents_are_refused(self, critic: SegmentorCritic, kind: type[Guidance],
                                                 parts: Callable[[SegmentorCritic], dict], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            generate(todsynth(), guidance=kind(**parts(critic)))

    def test_a_critic_of_other_classes_and_too_many_steps_are_refused(self, critic: SegmentorCritic) -> None:
        network = dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=4)
        with pytest.raises(ValueError, match='3 classes.* 4'):
            generate(todsynth(network=network, label_codec=OneHotCodec(4)), guidance=CRFM(critic))
        with pytest.raises(ValueError, match="`steps` 5 is more than the run's 4"):
            generate(todsynth(), guidance=CRFM(critic, steps=5))


class TestBestOfN:

    def test_it_generates_the_seed_that_the_critic_likes_best(self, critic: SegmentorCritic) -> None:
        model, masks = todsynth(), torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])
        generated = model.synthesize(samples(), SEEDS, guidance=BestOfN(critic, 4))
        entries = [sample.guidance_trace[0] for sample in generated]
        kept = torch.stack([sample.generated_img.data for sample in generated])
        again = model.synthesize(samples(), [entry['seed'] for entry in entries])
        assert all(torch.equal(sample.generated_img.data, image) for sample, image in zip(again, kept))
        losses = critic(kept / 255, masks).mean_loss, critic(generate(model) / 255, masks).mean_loss
        assert (losses[0] <= losses[1] + 1e-3).all() and losses[0].sum() < losses[1].sum()
        assert [sample.seed for sample in generated] == SEEDS and {entry['step'] for entry in entries} == {3}

    def test_one_candidate_is_bit_equal_to_none(self, critic: SegmentorCritic) -> None:
        assert torch.equal(generate(todsynth(), guidance=BestOfN(critic, 1)), generate(todsynth()))

    def test_the_batch_makes_no_difference(self, critic: SegmentorCritic) -> None:
        model, guidance = todsynth(guidance_scale=2.0), BestOfN(critic, 3)
        together = generate(model, guidance=guidance)
        alone = torch.cat([generate(model, slice(row, row + 1), guidance) for row in range(4)])
        assert (together.int() - alone.int()).abs().max() <= 1

    def test_it_may_look_through_a_cheaper_decoder(self, critic: SegmentorCritic) -> None:
        guidance = BestOfN(critic, 4, decoder=ReducedDecoder(2))
        entries = [sample.guidance_trace[0] for sample in todsynth().synthesize(samples(), SEEDS, guidance=guidance)]
        assert all(entry['loss_after'] <= entry['loss_before'] for entry in entries)


class TestErrors:

    def test_one_seed_per_sample(self) -> None:
        with pytest.raises(ValueError, match='`seeds`.* 1 for 2 samples'):
            todsynth().synthesize(samples(2), [0])

    def test_masks_of_one_size(self) -> None:
        with pytest.raises(ValueError, match=r'masks .*\[\(8, 8\), \(16, 16\)\]'):
            todsynth().synthesize([*samples(1), *samples(1, size=8)], [0, 1])

    def test_a_size_that_the_codec_cannot_make(self) -> None:
        with pytest.raises(ValueError, match='image size 10x10.* 4'):
            todsynth().synthesize(samples(1, size=10), [0])

    def test_a_sample_without_prompt(self) -> None:
        bare = SynthDataSample(metainfo=dict(sample_id='s9'), gt_sem_seg=samples(1)[0].gt_sem_seg)
        for call in (lambda: todsynth().synthesize([bare], [0]), lambda: todsynth().loss(images(1), [bare])):
            with pytest.raises(ValueError, match='sample s9 has no prompt; add .*BuildPrompt'):
                call()

    def test_a_mask_value_without_a_class(self) -> None:
        sample = samples(1)[0]
        sample.gt_sem_seg.data[0, 0, 0] = 3
        with pytest.raises(ValueError, match='mask value 3: must be below the class count 3'):
            todsynth().synthesize([sample], [0])
