"""mmagic's checkpoints of a ControlNet, read without mmagic: what they compute, and what is refused."""
from pathlib import Path

import pytest
import tiny_mmagic
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from mmengine.config import Config
from tiny_generator import samples, todsynth
from torch import Tensor

from mmsynth.models import BaseGenerator
from mmsynth.models.checkpoints import load_generator, load_generator_state
from mmsynth.models.convert import convert_checkpoint
from mmsynth.models.mmagic_checkpoints import from_mmagic_translation, rename_mmagic
from mmsynth.registry import MODELS

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
OLD_NAMES = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}


@pytest.fixture(scope='module')
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mmagic.write_base(tmp_path_factory.mktemp('base'))


@pytest.fixture(scope='module')
def layout(base: Path) -> tiny_mmagic.Layout:
    return tiny_mmagic.trained(base)


def settings(base: Path, **changes) -> dict:
    return dict(type='mmsynth.MMagicGenerator', config=tiny_mmagic.config(base), palette=PALETTE, num_steps=2,
                guidance_scale=2.0) | changes


def images_of(generator: BaseGenerator) -> Tensor:
    done = generator.eval().synthesize(samples(2, 32), [1, 2])
    return torch.stack([sample.generated_img.data.float() for sample in done])


def expected(layout: tiny_mmagic.Layout, base: Path, folder: Path) -> Tensor:
    """What DiffusersControlNet generates with the same weights in diffusers' own folders."""
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        base, vae=layout.vae.model, unet=layout.unet.model, text_encoder=layout.text_encoder.model,
        controlnet=layout.controlnet.model, safety_checker=None, feature_extractor=None)
    pipeline.save_pretrained(folder)
    return images_of(MODELS.build(dict(
        type='mmsynth.DiffusersControlNet', pretrained=str(folder), controlnet=str(folder / 'controlnet'),
        palette=PALETTE, num_steps=2, guidance_scale=2.0)))


def test_a_checkpoint_generates_what_its_parts_do_in_diffusers_layout(base: Path, layout: tiny_mmagic.Layout,
                                                                      tmp_path: Path) -> None:
    path = tiny_mmagic.save(layout, tmp_path / 'iter_10.pth')
    wanted = expected(layout, base, tmp_path / 'parts')
    generator = MODELS.build(settings(base))
    assert (images_of(generator) - wanted).abs().mean() > 1
    report = load_generator(generator, path)
    assert report.complete and report.from_backbone == 0
    assert torch.equal(images_of(generator), wanted)


def test_other_names_of_the_same_tensors(base: Path, layout: tiny_mmagic.Layout) -> None:
    state = layout.state_dict()
    generator, other = MODELS.build(settings(base)), MODELS.build(settings(base))
    load_generator_state(generator, state, source='x')
    renamed = {f'module.{key.replace(".model.", ".module.model.", 1)}': value for key, value in state.items()}
    for new, old in OLD_NAMES.items():
        renamed = {key.replace(f'attentions.0.{new}', f'attentions.0.{old}') if '.vae.' in key else key: value
                   for key, value in renamed.items()}
    assert sum('.query.' in key for key in renamed) == 4  # weight and bias, of encoder and decoder
    renamed['module.text_encoder.module.model.text_model.embeddings.position_ids'] = torch.arange(77)[None]
    load_generator_state(other, renamed, source='x')
    assert torch.equal(images_of(other), images_of(generator))


def test_a_controlnet_alone_leaves_the_rest_to_the_backbone(base: Path, layout: tiny_mmagic.Layout) -> None:
    state = {key: value for key, value in layout.state_dict().items() if key.startswith('controlnet.')}
    generator = MODELS.build(settings(base))
    report = load_generator_state(generator, state, source='x')
    assert report.loaded == len(state) and report.from_backbone > 0 and not report.missing


def test_clip_is_left_out_with_another_text_encoder(base: Path, layout: tiny_mmagic.Layout) -> None:
    encoder = dict(type='mmsynth.ClassNameEmbedding', classes=['road', 'park', 'water'], embed_dims=12, pooled_dims=4)
    generator = MODELS.build(settings(base, text_encoder=dict(type='mmsynth.CachedTextEncoder', cache_dir='nowhere')))
    load_generator_state(generator, layout.state_dict(), source='x')
    assert torch.equal(generator.network.unet.conv_in.weight, layout.unet.model.conv_in.weight)
    with pytest.raises(ValueError, match='missing in the file: text_encoder.absent'):
        load_generator_state(MODELS.build(settings(base, text_encoder=encoder)), layout.state_dict(), source='x')


def test_what_does_not_fit_is_refused(base: Path, layout: tiny_mmagic.Layout) -> None:
    state = layout.state_dict()
    generator = MODELS.build(settings(base))
    with pytest.raises(ValueError, match=r'1 missing in the file: network.controlnet.conv_in.bias'):
        load_generator_state(generator, {key: value for key, value in state.items()
                                         if key != 'controlnet.model.conv_in.bias'}, source='x')
    with pytest.raises(ValueError, match=r'1 unexpected in the file: unet.unet.model.conv_in.bias'):
        load_generator_state(generator, state | {'unet.unet.model.conv_in.bias': torch.zeros(8)}, source='x')
    with pytest.raises(ValueError, match='checkpoint x is of mmagic.*the config has a MMDiT'):
        load_generator_state(todsynth(), state, source='x')


def test_translation_models_lose_their_discriminators() -> None:
    state = {'generators.photo.model.0.weight': torch.ones(1), 'module.generators.photo.b': torch.ones(2),
             'discriminators.photo.c': torch.ones(3), 'other': torch.ones(4)}
    assert from_mmagic_translation(state).keys() == {
        'model.generators.photo.model.0.weight', 'model.generators.photo.b', 'other'}
    assert rename_mmagic('data_preprocessor.mean') == 'data_preprocessor.mean'


class TestConversion:

    @pytest.fixture
    def checkpoint(self, layout: tiny_mmagic.Layout, tmp_path: Path) -> Path:
        return tiny_mmagic.save(layout, tmp_path / 'iter_10.pth')

    def test_to_ours(self, base: Path, layout: tiny_mmagic.Layout, checkpoint: Path, tmp_path: Path) -> None:
        result = convert_checkpoint(Config(dict(model=settings(base))), checkpoint, tmp_path / 'a.safetensors')
        assert result.report.complete
        generator = MODELS.build(settings(base))
        load_generator(generator, tmp_path / 'a.safetensors')
        assert torch.equal(images_of(generator), expected(layout, base, tmp_path / 'parts'))

    def test_to_diffusers(self, base: Path, layout: tiny_mmagic.Layout, checkpoint: Path, tmp_path: Path) -> None:
        result = convert_checkpoint(Config(dict(model=settings(base))), checkpoint, tmp_path / 'out', to='diffusers')
        assert not result.left_out and f'{tmp_path}/out/controlnet' in result.written
        generator = MODELS.build(dict(
            type='mmsynth.DiffusersControlNet', pretrained=str(tmp_path / 'out'),
            controlnet=str(tmp_path / 'out/controlnet'), palette=PALETTE, num_steps=2, guidance_scale=2.0))
        assert torch.equal(images_of(generator), expected(layout, base, tmp_path / 'parts'))
        pipeline = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / 'out')
        assert isinstance(pipeline.controlnet, ControlNetModel)

    def test_without_clip_there_is_no_text_encoder(self, base: Path, checkpoint: Path, tmp_path: Path) -> None:
        model = settings(base, text_encoder=dict(type='mmsynth.CachedTextEncoder', cache_dir='nowhere'))
        result = convert_checkpoint(Config(dict(model=model)), checkpoint, tmp_path / 'out', to='diffusers')
        assert result.left_out == ['text_encoder'] and not (tmp_path / 'out/text_encoder').exists()
