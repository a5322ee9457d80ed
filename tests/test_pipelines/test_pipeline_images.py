"""A pipeline's images are those that mmsynth generates for mmseg, bit by bit, before and after saving and loading."""
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from tiny_generator import TEXT, TRUNK, images, perturb, pretrained_config
from tiny_pipelines import PIPELINES, generator, masks, pipeline, pixels, quiet, references, seeded
from tiny_tisynth import NETWORK
from toy_critic import ToyCritic

from mmsynth.apis import generate
from mmsynth.guidance import CRFM, BestOfN
from mmsynth.models import BaseGenerator
from mmsynth.models.encoders import CachedTextEncoder, PromptCache
from mmsynth.pipelines import TISynthPipeline, TODSynthPipeline
from mmsynth.pipelines.components import build_label_codec, describe_label_codec
from mmsynth.registry import MODELS


def assert_same_images(model: BaseGenerator, folder: Path, kind: str, size: int = 16, critics: tuple = (None, ),
                       **call) -> TODSynthPipeline | TISynthPipeline:
    """Compare with the generator, both the pipeline that is made of it and what it is saved and loaded as."""
    pipe = quiet(PIPELINES[kind].from_generator(model))
    pipe.save_pretrained(folder)
    loaded = quiet(PIPELINES[kind].from_pretrained(folder))
    given, looks = masks(size=size), references(kind)
    prompts = call.get('prompt')
    for critic in critics:
        expected = generate(model, given, prompts, looks.get('reference'), critic=critic, seed=3)
        assert np.stack(expected).std() > 1
        guides = dict(critic=critic) if isinstance(critic, ToyCritic) else dict(guidance=critic)
        for one in (pipe, loaded):
            result = one(given, generator=seeded(3), **looks, **guides, **call)
            difference = np.abs(pixels(result.images).astype(int) - np.stack(expected).astype(int))
            assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # some processors round other layouts apart
    return loaded


@pytest.mark.parametrize('control', ['triple', 'siamese', 'adapter'])
def test_todsynth_with_every_control_scheme(control: str, tmp_path: Path) -> None:
    model = generator('todsynth', network=dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3,
                                               control=control))
    loaded = assert_same_images(model, tmp_path, 'todsynth', critics=(None, ToyCritic(), CRFM(ToyCritic(), steps=2)))
    assert loaded.transformer.control == control


def test_tisynth_with_references(tmp_path: Path) -> None:
    assert_same_images(generator('tisynth'), tmp_path, 'tisynth',
                       critics=(None, ToyCritic(), CRFM(ToyCritic(), steps=2, recurrence=2), BestOfN(ToyCritic(), 2)))


@pytest.mark.parametrize('kind, changes', [
    ('todsynth', dict(network=dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3, legacy=True))),
    ('todsynth', dict(guidance_scale=2.0, guidance_interval=(0.2, 0.9), mask_guidance_scale=1.5, mask_dropout=0.1)),
    ('todsynth', dict(sampler=dict(type='FlowMatchHeunDiscreteScheduler'))),
    ('todsynth', dict(sampler=dict(type='DPMSolverMultistepScheduler'), scheduler=dict(shift=2.0))),
    ('tisynth', dict(prediction_type='v_prediction', scheduler=dict(beta_end=0.02), guidance_scale=1.0)),
    ('tisynth', dict(sampler=dict(type='DPMSolverMultistepScheduler', use_karras_sigmas=True), num_steps=3)),
    ('tisynth', dict(reference_guidance_scale=2.0, reference_dropout=0.1, mask_guidance_scale=0.5, mask_dropout=0.1)),
    ('tisynth', dict(legacy=True, label_codec=dict(type='mmsynth.IdCodec', num_classes=3))),
])
def test_the_settings_of_a_generator_go_along(kind: str, changes: dict, tmp_path: Path) -> None:
    assert_same_images(generator(kind, **changes), tmp_path, kind)


def test_settings_of_the_network_go_along(tmp_path: Path) -> None:
    network = NETWORK | dict(mask_locality=True, conditioning_embedding_out_channels=(4, 8, 8, 12))
    loaded = assert_same_images(generator('tisynth', network=network), tmp_path, 'tisynth')
    assert loaded.unet.config.mask_locality
    assert list(loaded.unet.config.conditioning_embedding_out_channels) == [4, 8, 8, 12]


@pytest.mark.parametrize('codec', [
    dict(type='mmsynth.OneHotCodec', num_classes=3, ignore_index=7),
    dict(type='mmsynth.PaletteCodec', palette=[[255, 0, 0], [1, 2, 3], [0, 130, 255]]),
    dict(type='mmsynth.GreyLevelCodec', num_classes=3)])
def test_label_codecs_go_along(codec: dict) -> None:
    own = MODELS.build(codec)
    again = build_label_codec(describe_label_codec(own))
    mask = torch.tensor([[[0, 1, 2, own.ignore_index]]])
    assert type(again) is type(own) and torch.equal(again.encode(mask), own.encode(mask))


def test_a_fitted_autoencoder_goes_along(tmp_path: Path) -> None:
    codec = MODELS.build(dict(type='mmsynth.AutoencoderCodec', channels=6, iterations=2))
    codec.fit(images())
    assert_same_images(generator('tisynth', latent_codec=codec), tmp_path, 'tisynth')


def test_todsynth_on_stable_diffusion_3(tiny_sd3: Path, tmp_path: Path) -> None:
    """VAE, three text encoders and their tokenizers are components as they are."""
    torch.manual_seed(0)
    text = dict(type='mmsynth.SD3TextEncoder', pretrained=str(tiny_sd3), max_sequence_length=12, dtype='float32')
    model = perturb(MODELS.build(pretrained_config(tiny_sd3, text_encoder=text))).eval()
    loaded = assert_same_images(model, tmp_path, 'todsynth', 32, prompt=['a satellite image of road', 'park, water'])
    assert type(loaded.vae).__name__ == 'AutoencoderKL' and type(loaded.text_encoder_3).__name__ == 'T5EncoderModel'
    without = quiet(TODSynthPipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None))
    image = without(masks(1, 32), 'road', generator=seeded(3, 1)).images[0]
    assert image.size == (32, 32)


def test_tisynth_on_stable_diffusion_1_5(tiny_sd15: Path, tmp_path: Path) -> None:
    folder = str(tiny_sd15)
    torch.manual_seed(0)
    model = perturb(MODELS.build(dict(
        type='mmsynth.TISynth', network=dict(type='mmsynth.ControlledUNet', pretrained=folder),
        latent_codec=dict(type='mmsynth.VAECodec', pretrained=folder),
        label_codec=dict(type='mmsynth.IdCodec', num_classes=3),
        text_encoder=dict(type='mmsynth.CLIPTextEncoder', pretrained=folder), num_steps=2))).eval()
    assert_same_images(model, tmp_path, 'tisynth', 64, prompt=['road', 'water'])


def test_a_prompt_cache_becomes_a_table(tmp_path: Path) -> None:
    """The prompts of the cache's own encoder, in the dtype that they are read in."""
    encoder = MODELS.build(dict(type='mmsynth.ClassNameEmbedding') | TEXT)
    for identity, prompts in (('a', ['road', '', 'park']), ('b', ['water'])):
        for prompt in prompts:
            embeds = encoder.encode([prompt])
            own = type(embeds)(*(part[0].bfloat16() for part in embeds))
            PromptCache(tmp_path / 'cache', identity).put(prompt, own)
    model = generator('tisynth', text_encoder=CachedTextEncoder(str(tmp_path / 'cache'), identity='a'))
    loaded = assert_same_images(model, tmp_path / 'pipe', 'tisynth', prompt=['road', 'park'])
    assert loaded.text_encoder.config.prompts == ['', 'park', 'road']
    with pytest.raises(ValueError, match="`prompt` 'water' is none of the 3 prompts"):
        loaded(masks(1), 'water', **references('tisynth', 1))


@pytest.mark.parametrize('kind, scheduler', [
    ('todsynth', FlowMatchHeunDiscreteScheduler(shift=3.0)),
    ('tisynth', EulerDiscreteScheduler(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)),
    ('tisynth', DPMSolverMultistepScheduler(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012))])
def test_another_scheduler(kind: str, scheduler: object) -> None:
    """The one that is set is what samples, as a generator with that sampler does."""
    pipe = pipeline(kind)
    pipe.scheduler = scheduler
    model = generator(kind, sampler=dict(type=type(scheduler).__name__))
    expected = generate(model, masks(), None, references(kind).get('reference'), seed=3)
    assert np.array_equal(pixels(pipe(masks(), generator=seeded(3), **references(kind)).images), np.stack(expected))
