"""TISynth generating: against a known answer, guided by prompt and critic; what is computed once and what per step."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from tiny_generator import PROMPTS, SIZE, images, segmentor
from tiny_tisynth import SEEDS, NoiseOracle, VelocityOracle, critic, generate, masks, oracle, referenced, tisynth
from torch import Tensor, nn

from mmsynth.guidance import CRFM, BestOfN, SegmentorCritic
from mmsynth.models import OneHotCodec, PatchPCACodec, TISynth
from mmsynth.sampling import build_sampler


@pytest.fixture(scope='module')
def judge() -> SegmentorCritic:
    return critic(segmentor())


@pytest.fixture(scope='module')
def model() -> TISynth:
    return tisynth()


class PromptLength(nn.Module):
    """A text encoder whose embedding is the length of the prompt."""

    def encode(self, prompts: list[str]) -> SimpleNamespace:
        lengths = torch.tensor([[float(len(prompt))] for prompt in prompts])
        return SimpleNamespace(prompt_embeds=lengths[:, None], pooled_prompt_embeds=lengths)


class Constant(NoiseOracle):
    """Answers with the prompt's embedding as a constant noise; keeps what it is shown."""

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, mask_hint: Tensor,
                reference_hint: Tensor) -> Tensor:
        self.shown = prompt_embeds, mask_hint, reference_hint
        self.calls += 1
        return 0.01 * prompt_embeds[:, :, :, None].expand_as(latents)


class TestSynthesis:

    @pytest.mark.parametrize('num_steps', [1, 7])
    @pytest.mark.parametrize('scale', [1.0, 9.0])
    def test_the_true_noise_generates_the_images(self, num_steps: int, scale: float) -> None:
        """The whole way: seeded noise, sampling, decoding, bytes in RGB."""
        generated = generate(oracle(num_steps=num_steps, guidance_scale=scale))
        assert generated.dtype == torch.uint8 and (generated - (images() + 1) * 127.5).abs().max() < 0.6

    @pytest.mark.parametrize('sampler', ['DDIMScheduler', 'DPMSolverMultistepScheduler'])
    def test_so_does_the_true_velocity(self, sampler: str) -> None:
        settings = dict(type=sampler) | (dict(set_alpha_to_one=True) if sampler == 'DDIMScheduler' else {})
        generated = generate(oracle(VelocityOracle, prediction_type='v_prediction', sampler=settings, num_steps=7))
        assert (generated - (images() + 1) * 127.5).abs().max() < 0.6

    def test_the_batch_makes_no_difference(self, model: TISynth) -> None:
        together, _ = model.sample_latents(referenced(), masks(), SEEDS, guidance=None)
        for row in range(4):
            one = slice(row, row + 1)
            alone, _ = model.sample_latents(referenced()[one], masks()[one], SEEDS[one], guidance=None)
            torch.testing.assert_close(together[one], alone, atol=1e-3, rtol=1e-3)

    def test_seed_mask_prompt_and_reference_each_count(self, model: TISynth) -> None:
        first = model.synthesize(referenced(1), [1])[0].generated_img.data
        assert torch.equal(model.synthesize(referenced(1), [1])[0].generated_img.data, first)
        mask, prompt, reference = (referenced(1)[0] for _ in range(3))
        mask.gt_sem_seg = PixelData(data=(mask.gt_sem_seg.data + 1) % 3)
        prompt.set_metainfo(dict(prompt='water'))
        reference.reference = PixelData(data=-reference.reference.data)
        for changed, seed in ((referenced(1)[0], 2), (mask, 1), (prompt, 1), (reference, 1)):
            assert not torch.equal(model.synthesize([changed], [seed])[0].generated_img.data, first)

    def test_the_global_random_state_is_not_used(self, model: TISynth) -> None:
        state = torch.get_rng_state()
        generate(model, slice(0, 1))
        assert torch.equal(torch.get_rng_state(), state)

    def test_mask_and_reference_are_encoded_once_and_guidance_is_one_forward(self) -> None:
        model = oracle(num_steps=5)
        generate(model)
        network = model.network
        assert (network.mask_encodings, network.reference_encodings, network.calls) == (1, 1, 5)


class TestPromptGuidance:

    @staticmethod
    def model(scale: float) -> TISynth:
        codec = PatchPCACodec(4, 48)
        codec.fit(images())
        return TISynth(Constant(codec.encode(images())), codec, OneHotCodec(3), PromptLength(), guidance_scale=scale,
                       num_steps=1)

    @pytest.mark.parametrize('scale', [1.0, 9.0])
    def test_it_goes_beyond_the_prompt_s_noise_by_its_scale(self, scale: float) -> None:
        """The empty prompt's noise is 0, so that the guided one is ``scale * noise``; one step of DDIM by hand."""
        latents, _ = self.model(scale).sample_latents(referenced(), masks(), SEEDS, guidance=None)
        noise = torch.stack([torch.randn(48, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
        guided = scale * 0.01 * torch.tensor([float(len(prompt)) for prompt in PROMPTS])[:, None, None, None]
        table = build_sampler().alphas_cumprod
        start, end = table[1], table[0]  # one step is that of timestep 1
        clean = (noise - (1 - start).sqrt() * guided) / start.sqrt()
        torch.testing.assert_close(latents, end.sqrt() * clean + (1 - end).sqrt() * guided, atol=1e-4, rtol=0)

    def test_mask_and_reference_stay_in_the_unconditional_pass(self) -> None:
        model = self.model(9.0)
        model.sample_latents(referenced(), masks(), SEEDS, guidance=None)
        prompts, mask_hint, reference_hint = model.network.shown
        assert prompts[:4].abs().sum() == 0 and prompts[4:, 0, 0].tolist() == [float(len(p)) for p in PROMPTS]
        for hint in (mask_hint, reference_hint):
            assert len(hint) == 8 and torch.equal(hint[:4], hint[4:]) and hint.abs().sum() > 0


class TestTaskGuidance:

    def test_no_guided_steps_are_bit_equal_to_none(self, model: TISynth, judge: SegmentorCritic) -> None:
        assert torch.equal(generate(model, guidance=CRFM(judge, steps=0)), generate(model))

    def test_it_lowers_the_critic_s_loss_and_leaves_a_trace(self, model: TISynth, judge: SegmentorCritic) -> None:
        """The gradient goes to the predicted noise through the clean estimate."""
        guidance = CRFM(judge, steps=4, step_size=0.3, objective='mask', measure_after=True)
        generated = model.synthesize(referenced(), SEEDS, guidance=guidance)
        guided = torch.stack([sample.generated_img.data for sample in generated])
        before, after = (judge(pixels / 255, masks()).mean_loss for pixels in (generate(model), guided))
        assert after.sum() < before.sum()
        assert [[record['step'] for record in sample.guidance_trace] for sample in generated] == [[0, 1, 2, 3]] * 4
        records = [record for sample in generated for record in sample.guidance_trace]
        assert all(record['skipped'] == 0 and 0 < record['sigma'] < 1 for record in records)
        assert sum(r['loss_after'] for r in records) < sum(r['loss_before'] for r in records)

    def test_four_samples_are_four_times_one(self, model: TISynth, judge: SegmentorCritic) -> None:
        guidance = CRFM(judge, steps=2)
        together, _ = model.sample_latents(referenced(), masks(), SEEDS, guidance=guidance)
        for row in (1, 3):
            one = slice(row, row + 1)
            alone, trace = model.sample_latents(referenced()[one], masks()[one], SEEDS[one], guidance=guidance)
            torch.testing.assert_close(together[one], alone, atol=1e-2, rtol=1e-2)
            assert [record['skipped'] for record in trace[0]] == [0, 0]

    @pytest.mark.parametrize('name', ['DPMSolverMultistepScheduler', 'UniPCMultistepScheduler'])
    def test_multistep_samplers_are_guided_too(self, judge: SegmentorCritic, name: str) -> None:
        model = tisynth(sampler=dict(type=name, use_karras_sigmas=True), num_steps=6)
        guidance = CRFM(judge, step_size=0.3, objective='mask', measure_after=True)
        latents, traces = model.sample_latents(referenced(), masks(), SEEDS, guidance=guidance)
        records = [record for trace in traces for record in trace]
        assert [record['step'] for record in traces[0]] == list(range(6)) and latents.isfinite().all()
        assert sum(r['loss_after'] for r in records) < sum(r['loss_before'] for r in records)
        alone, _ = model.sample_latents(referenced()[1:2], masks()[1:2], SEEDS[1:2], guidance=guidance)
        torch.testing.assert_close(latents[1:2], alone, atol=1e-2, rtol=1e-2)

    def test_best_of_n_keeps_the_seed_that_the_critic_likes_best(self, model: TISynth,
                                                                 judge: SegmentorCritic) -> None:
        generated = model.synthesize(referenced(), SEEDS, guidance=BestOfN(judge, 3))
        entries = [sample.guidance_trace[0] for sample in generated]
        kept = torch.stack([sample.generated_img.data for sample in generated])
        again = model.synthesize(referenced(), [entry['seed'] for entry in entries])
        assert all((sample.generated_img.data.int() - image.int()).abs().max() <= 1
                   for sample, image in zip(again, kept))
        assert all(entry['loss_after'] <= entry['loss_before'] for entry in entries)
        assert len({entry['candidate'] for entry in entries}) > 1 or entries[0]['candidate'] > 0

    def test_more_guided_steps_than_the_run_has(self, model: TISynth, judge: SegmentorCritic) -> None:
        with pytest.raises(ValueError, match="`steps` 5 is more than the run's 4"):
            generate(model, guidance=CRFM(judge, steps=5))


def test_a_size_that_the_codec_cannot_make() -> None:
    with pytest.raises(ValueError, match=f'image size 10x10.* {SIZE // 4}'):
        oracle().synthesize(referenced(1, size=10), [0])
