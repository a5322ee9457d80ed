"""TISynth in training: the loss in closed form, what is frozen, and the message of each mistake."""
from pathlib import Path

import pytest
import torch
from mmengine.structures import PixelData
from tiny_backbone import CLIP_WIDTHS
from tiny_generator import PROMPTS, SIZE, images, perturb, samples
from tiny_tisynth import CLEAN_DDIM, NETWORK, NoiseOracle, VelocityOracle, generate, oracle, referenced, tisynth

from mmsynth.models import TISynth
from mmsynth.registry import MODELS


class TestLoss:

    def test_the_true_noise_has_none(self) -> None:
        """So that noisy latent, timestep and target belong together."""
        loss = oracle().loss(images(), referenced())
        assert loss.keys() == {'loss_noise'} and float(loss['loss_noise']) < 1e-4

    def test_no_noise_has_that_of_noise(self) -> None:
        """``E‖eps‖²`` is 1."""
        model = oracle()
        model.network.forward = lambda latents, *condition: torch.zeros_like(latents)
        torch.manual_seed(0)
        losses = torch.stack([model.loss(images(), referenced())['loss_noise'] for _ in range(20)])
        assert float(losses.mean()) == pytest.approx(1, abs=0.02)

    def test_a_true_velocity_has_none(self) -> None:
        """``v = alpha eps - sigma z0`` of the noise that the oracle knows."""
        model = oracle(VelocityOracle, prediction_type='v_prediction')
        loss = model.loss(images(), referenced())
        assert loss.keys() == {'loss_velocity'} and float(loss['loss_velocity']) < 1e-4

    def test_timesteps_are_drawn_over_the_whole_schedule(self) -> None:
        model, seen = oracle(), []
        own = model.network.forward
        model.network.forward = lambda z, t, *condition: seen.append(t) or own(z, t, *condition)
        torch.manual_seed(0)
        for _ in range(100):
            model.loss(images(), referenced())
        drawn = torch.cat(seen).float()
        assert drawn.min() < 20 and 980 < drawn.max() < 1000 and float(drawn.mean()) == pytest.approx(500, abs=40)

    def test_or_where_a_density_says(self) -> None:
        """The median of a logit-normal share is the logistic function of its mean."""
        model = oracle(timestep_density=dict(logit_mean=-0.5, logit_std=1.0))
        torch.manual_seed(0)
        drawn = model._draw_timesteps(4000, torch.Generator())
        assert drawn.min() >= 0 and drawn.max() < 1000 and drawn.dtype == torch.int64
        assert float(drawn.float().median()) == pytest.approx(1000 / (1 + 2.71828**0.5), abs=20)

    def test_the_reference_is_the_latent_of_the_sample_s(self) -> None:
        model, seen = oracle(), []
        model.network.encode_reference = lambda latents: seen.append(latents) or latents
        given = referenced()
        model.loss(images(), given)
        model.synthesize(given, [1, 2, 3, 4])
        expected = model.latent_codec.encode(torch.stack([sample.reference.data for sample in given]))
        assert len(seen) == 2 and all(torch.equal(latents, expected) for latents in seen)

    def test_it_falls_in_training(self) -> None:
        model = tisynth().train()
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
        losses = []
        for _ in range(12):
            torch.manual_seed(5)  # the same noise and timesteps, so that only the weights differ
            loss = model(images(), referenced(), mode='loss')['loss_noise']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert losses[-1] < 0.9 * losses[0]

    @pytest.mark.parametrize('dropout, seen', [(0.0, PROMPTS), (1.0, [''] * 4)])
    def test_prompts_are_dropped_in_training(self, dropout: float, seen: list[str]) -> None:
        assert oracle(prompt_dropout=dropout)._drop_prompts(samples(), torch.Generator()) == seen


class TestFreezing:

    @staticmethod
    def trained(model: TISynth) -> set[str]:
        """Names with a gradient after a backward pass."""
        model.train().loss(images(), referenced())['loss_noise'].backward()
        return {name for name, value in model.named_parameters() if value.grad is not None}

    @staticmethod
    def names(model: TISynth, *branches: str) -> set[str]:
        return {f'network.{name}' for branch in branches for name in model.network.branch_parameters(branch)}

    def test_by_default_all_but_the_u_net_trains(self) -> None:
        model = tisynth()
        text = {name for name, _ in model.named_parameters() if name.startswith('text_encoder.')}
        expected = self.names(model, 'attention', 'mask', 'reference')
        assert set(model.trainable_names()) - text == expected and self.trained(model) & expected == expected
        assert not self.trained(model) & self.names(model, 'unet')

    def test_legacy_trains_what_the_release_trains(self) -> None:
        model = tisynth(legacy=True, label_codec=dict(type='mmsynth.IdCodec', num_classes=3))
        assert not self.names(model, 'mask', 'unet') & self.trained(model)
        assert self.names(model, 'attention', 'reference') <= self.trained(model)

    @pytest.mark.parametrize('branch', ['attention', 'mask', 'reference'])
    def test_a_frozen_branch_gets_no_gradient(self, branch: str) -> None:
        model = tisynth(trainable={branch: 'frozen', 'unet': 'full'})
        assert not self.names(model, branch) & self.trained(model)
        assert self.names(model, 'unet') <= self.trained(model)

    def test_low_rank_updates_are_merged_without_a_change(self) -> None:
        model = perturb(tisynth(trainable=dict(reference='lora', attention='lora', mask='frozen'), lora=dict(rank=2)))
        trained = [name for name in model.trainable_names() if name.startswith('network.')]
        assert model.has_lora and trained and all('lora_' in name for name in trained)
        before = generate(model)
        assert model.merge_lora() > 0 and not model.has_lora
        assert (generate(model).int() - before.int()).abs().max() <= 1  # where float rounding meets one half


def test_the_whole_of_a_tiny_stable_diffusion_1_5_runs(tiny_sd15: Path) -> None:
    """Folder, VAE, class ids by 255, CLIP, augmented references, classifier-free guidance, checkpoint and back."""
    folder = str(tiny_sd15)
    config = dict(
        type='mmsynth.TISynth',
        network=dict(type='mmsynth.ControlledUNet', pretrained=folder),
        latent_codec=dict(type='mmsynth.VAECodec', pretrained=folder),
        label_codec=dict(type='mmsynth.IdCodec', num_classes=3),
        text_encoder=dict(type='mmsynth.CLIPTextEncoder', pretrained=folder),
        num_steps=2)
    model, size = MODELS.build(config).train(), 64
    batch = samples(2, size)
    for sample in batch:
        sample.reference = PixelData(data=torch.randint(256, (3, size, size), dtype=torch.uint8))
    inputs = dict(inputs=[torch.randint(256, (3, size, size), dtype=torch.uint8)] * 2, data_samples=batch)
    loss = model(**model.data_preprocessor(inputs, training=True), mode='loss')['loss_noise']
    loss.backward()
    got = {name for name, value in model.named_parameters() if value.grad is not None}
    assert loss.isfinite() and got <= set(model.trainable_names())
    assert not any(name.startswith(('text_encoder.', 'latent_codec.')) for name in got)
    assert model.text_encoder.encode(['road']).prompt_embeds.shape == (1, 77, CLIP_WIDTHS[0])

    perturb(model).eval()
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    assert not any(name.startswith(('text_encoder.', 'latent_codec.')) for name in saved)
    again = MODELS.build(config).eval()
    again.load_state_dict(saved)
    ready = model.data_preprocessor(dict(data_samples=batch))['data_samples']
    first, second = (torch.stack([s.generated_img.data for s in each.synthesize(ready, [1, 2])])
                     for each in (model, again))
    assert first.shape == (2, 3, size, size) and first.float().std() > 1 and torch.equal(first, second)


class TestErrors:

    @pytest.mark.parametrize('changes, message', [
        (dict(timestep_density=dict(mean=0)), '`timestep_density` takes logit_mean and logit_std, both or none'),
        (dict(prediction_type='noise'), "`prediction_type` must be one of epsilon, v_prediction, got 'noise'"),
        (dict(prompt_dropout=1.5), r'`prompt_dropout` must be in \[0, 1\], got 1.5'),
        (dict(num_steps=0), '`num_steps` and `guidance_scale` must be at least 1, got 0 and 2.0'),
        (dict(guidance_scale=0.5), 'must be at least 1, got 4 and 0.5'),
        (dict(trainable=dict(image='full')), "takes the branches unet, attention, mask, reference, .*'image': 'full'"),
        (dict(trainable=dict(unet='Full')), "each one of full, lora, frozen; got .*'unet': 'Full'"),
        (dict(lora=dict(rank=2)), "`lora` has no effect: no branch of `trainable` is 'lora'"),
        (dict(latent_codec=dict(type='mmsynth.PatchPCACodec', channels=5)),
         'latents of 6 channels, `latent_codec` makes 5; set .*`in_channels`'),
        (dict(label_codec=dict(type='mmsynth.OneHotCodec', num_classes=4)),
         r'`network.mask_channels` is 3, `label_codec` \(OneHotCodec\) gives 4; set it to 4'),
        (dict(network=NETWORK | dict(mask_factor=8)),
         r'`network.mask_factor` is 8, `latent_codec` \(PatchPCACodec\) has 4 pixels per latent cell; set it to 4'),
        (dict(legacy=True), r"`legacy=True` .* needs label_codec=dict\(type='mmsynth.IdCodec', ...\), got OneHotCodec"),
        (dict(sampler=dict(type='EulerAncestralDiscreteScheduler')), '`sampler.type` must be one of DDIMScheduler'),
        (dict(scheduler=dict(shift=3.0)), '`scheduler` takes beta_schedule, .*, got shift'),
    ])  # yapf: disable
    def test_options_that_cannot_be(self, changes: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tisynth(**changes)

    def test_a_misspelt_option_is_named(self) -> None:
        with pytest.raises(TypeError, match='num_step'):
            tisynth(num_step=3)

    def test_samples_without_a_usable_reference(self) -> None:
        small, raw = referenced(1)[0], referenced(1)[0]
        small.reference = PixelData(data=torch.zeros(3, 8, SIZE))
        raw.reference = PixelData(data=torch.zeros(3, SIZE, SIZE, dtype=torch.uint8))
        model = oracle()
        for sample, message in ((samples(1)[0], 's0 has no reference image; .*ReferenceAugment.*PickReference'),
                                (small, 'of sample s0 is 8 x 16, its mask 16 x 16 .*FitReference'),
                                (raw, 'of sample s0 must be float .*, got torch.uint8; .*`data_preprocessor`')):
            for call in (lambda: model.synthesize([sample], [0]), lambda: model.loss(images(1), [sample])):  # noqa: B023
                with pytest.raises(ValueError, match=message):
                    call()


def test_a_sampler_is_chosen_by_name() -> None:
    clean = images()
    for sampler in (CLEAN_DDIM, dict(type='DPMSolverMultistepScheduler'), dict(type='UniPCMultistepScheduler')):
        model = oracle(NoiseOracle, sampler=sampler, num_steps=6)
        assert type(model.sampler).__name__ == sampler['type']
        assert (generate(model) - (clean + 1) * 127.5).abs().max() < 1.5  # timesteps are rounded for the oracle
