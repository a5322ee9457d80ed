"""TODSynth in training: the loss in closed form, what is frozen, and the message of each mistake."""
from pathlib import Path

import pytest
import torch
from tiny_generator import PROMPTS, SIZE, TRUNK, images, oracle, samples, todsynth

from mmsynth.models import GreyLevelCodec, TODSynth
from mmsynth.models.generators.todsynth import WEIGHTING_SCHEMES


class TestLoss:

    @pytest.mark.parametrize('scheme', ['none', 'logit_normal', 'mode', 'cosmap'])
    def test_the_true_velocity_has_none(self, scheme: str) -> None:
        """So that noisy latent, timestep and target belong together."""
        loss = oracle(weighting_scheme=scheme).loss(images(), samples())
        assert loss.keys() == {'loss_velocity'} and float(loss['loss_velocity']) < 1e-6

    @pytest.mark.parametrize('scheme', ['none', 'logit_normal', 'mode'])
    def test_no_velocity_has_that_of_noise_and_latent(self, scheme: str) -> None:
        """``E‖eps - z0‖²`` is 2 for white latents, whatever the sigma."""
        model = oracle(weighting_scheme=scheme)
        model.network.forward = lambda latents, *condition: torch.zeros_like(latents)
        torch.manual_seed(0)
        losses = torch.stack([model.loss(images(), samples())['loss_velocity'] for _ in range(20)])
        assert float(losses.mean()) == pytest.approx(2, abs=0.05)

    @pytest.mark.parametrize('scheme', WEIGHTING_SCHEMES)
    def test_every_weighting_is_finite(self, scheme: str) -> None:
        model = todsynth(weighting_scheme=scheme)
        sigmas, weights = model._draw_sigmas(500, torch.device('cpu'), torch.Generator())
        assert sigmas.shape == weights.shape == (500, 1, 1, 1) and weights.isfinite().all() and (weights > 0).all()
        assert 0 < sigmas.min() and sigmas.max() <= 1 and sigmas.std() > 0.05
        assert model.loss(images(), samples())['loss_velocity'].isfinite()

    def test_it_falls_in_training(self) -> None:
        model = todsynth().train()
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
        losses = []
        for _ in range(24):
            torch.manual_seed(5)  # the same noise and sigmas, so that only the weights differ
            loss = model(images(), samples(), mode='loss')['loss_velocity']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert losses[-1] < 0.9 * losses[0]

    @pytest.mark.parametrize('dropout, seen', [(0.0, PROMPTS), (1.0, [''] * 4)])
    def test_prompts_are_dropped_in_training(self, dropout: float, seen: list[str]) -> None:
        assert todsynth(prompt_dropout=dropout)._drop_prompts(samples(), torch.Generator()) == seen


class TestScheduler:

    def test_settings_are_added_to_those_of_stable_diffusion_3(self) -> None:
        assert todsynth(scheduler=dict(num_train_timesteps=500)).scheduler.config.shift == 3.0
        assert todsynth(scheduler=dict(shift=1.0)).scheduler.config.shift == 1.0

    @pytest.mark.parametrize('option', ['stochastic_sampling', 'use_dynamic_shifting'])
    def test_settings_that_sampling_cannot_follow_are_refused(self, option: str) -> None:
        with pytest.raises(ValueError, match=f'`scheduler.{option}`'):
            todsynth(scheduler={option: True})


def test_a_mask_larger_than_the_position_table_is_refused() -> None:
    with pytest.raises(ValueError, match='`pos_embed_max_size` 4'):
        todsynth().synthesize(samples(1, size=2 * SIZE), [0])


def test_positions_without_a_table_have_no_limit() -> None:
    network = dict(type='mmsynth.MMDiT', trunk=TRUNK | dict(pos_embed_max_size=None), mask_channels=3)
    assert todsynth(network=network).synthesize(samples(1, size=2 * SIZE), [0])[0].finite


class TestFreezing:

    @staticmethod
    def trained(model: TODSynth) -> set[str]:
        """Names with a gradient after a backward pass."""
        model.train().loss(images(), samples())['loss_velocity'].backward()
        return {name for name, value in model.named_parameters() if value.grad is not None}

    def test_by_default_text_is_frozen_and_all_else_gets_a_gradient(self) -> None:
        model = todsynth()
        frozen = {f'network.{name}' for name in model.network.branch_parameters('text')}
        assert set(model.trainable_names()) == dict(model.named_parameters()).keys() - frozen
        assert self.trained(model) == set(model.trainable_names())

    @pytest.mark.parametrize('branch', ['image', 'mask'])
    def test_a_frozen_branch_gets_none(self, branch: str) -> None:
        model = todsynth(trainable={branch: 'frozen', 'text': 'full'})
        names = {f'network.{name}' for name in model.network.branch_parameters(branch)}
        assert not names & self.trained(model) and not names & set(model.trainable_names())
        assert {f'network.{name}' for name in model.network.branch_parameters('text')} <= set(model.trainable_names())

    def test_the_codec_stays_in_eval_mode(self) -> None:
        model = todsynth().train()
        assert model.training and model.network.training and not model.latent_codec.training


def test_the_whole_of_a_tiny_stable_diffusion_3_runs(tiny_sd3: Path) -> None:
    """Folder, VAE, grey levels through the VAE, all three text encoders, classifier-free guidance."""
    folder = str(tiny_sd3)
    model = TODSynth(
        dict(type='mmsynth.MMDiT', pretrained=folder),
        dict(type='mmsynth.VAECodec', pretrained=folder),
        GreyLevelCodec(3),
        dict(type='mmsynth.SD3TextEncoder', pretrained=folder, max_sequence_length=8, dtype='float32'),
        num_steps=2,
        guidance_scale=2.0).train()
    inputs = dict(inputs=[torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8)] * 2, data_samples=samples(2))
    loss = model(**model.data_preprocessor(inputs, training=True), mode='loss')['loss_velocity']
    loss.backward()
    got = {name for name, value in model.named_parameters() if value.grad is not None}
    assert loss.isfinite() and got == set(model.trainable_names()) and not any('encoder' in name for name in got)
    generated = torch.stack([s.generated_img.data for s in model.eval().synthesize(samples(2), [1, 2])])
    assert generated.shape == (2, 3, SIZE, SIZE) and generated.float().std() > 1


class TestErrors:

    @pytest.mark.parametrize('changes, message', [
        (dict(weighting_scheme='cosine'), "`weighting_scheme` must be one of none, .*cosmap, got 'cosine'"),
        (dict(prompt_dropout=1.5), r'`prompt_dropout` must be in \[0, 1\], got 1.5'),
        (dict(num_steps=0), '`num_steps` and `guidance_scale` must be at least 1, got 0 and 1.0'),
        (dict(guidance_scale=0.5), 'must be at least 1, got 4 and 0.5'),
        (dict(trainable=dict(images='full')), "`trainable` takes the branches image, mask, text, .*'images': 'full'"),
        (dict(trainable=dict(image='Lora')), "each one of full, lora, frozen; got .*'image': 'Lora'"),
        (dict(latent_codec=dict(type='mmsynth.PatchPCACodec', channels=5)),
         'latents of 6 channels, `latent_codec` makes 5; set the trunk'),
        (dict(label_codec=dict(type='mmsynth.OneHotCodec', num_classes=4)),
         r'`network.mask_channels` is 3, `label_codec` \(OneHotCodec\) gives 4; set it to 4'),
        (dict(label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3, patch_size=2)), 'gives 12; set it to 12'),
        (dict(label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3, patch_size=3),
              network=dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=27)), 'patch_size` 3 must divide the 4'),
        (dict(label_codec=dict(type='mmsynth.GreyLevelCodec', num_classes=3)),
         r'\(GreyLevelCodec\) gives 6; set it to 6'),
    ])  # yapf: disable
    def test_options_that_cannot_be(self, changes: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            todsynth(**changes)

    def test_a_misspelt_option_is_named(self) -> None:
        with pytest.raises(TypeError, match='num_step'):
            todsynth(num_step=3)

    def test_an_unknown_mode(self) -> None:
        with pytest.raises(ValueError, match="`mode`.* got 'tensor'"):
            todsynth()(images(), samples(), mode='tensor')

    def test_training_without_images(self) -> None:
        with pytest.raises(ValueError, match='needs images'):
            todsynth()(None, samples(), mode='loss')
