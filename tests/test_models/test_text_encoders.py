import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backbone import CLIP_LENGTH, CLIP_WIDTHS, JOINT_DIM, POOLED_DIM, write_tiny_sd3, write_tiny_sd15
from tiny_generator import TRUNK, images, samples, todsynth
from tiny_tisynth import NETWORK, UNET, referenced, tisynth

from mmsynth.datasets.transforms.prompts import build_prompt
from mmsynth.models.encoders import ClassNameEmbedding, CLIPTextEncoder, PromptCache, SD3TextEncoder
from mmsynth.registry import MODELS

CLASSES = ('park', 'park land', 'Road', 'water')
PROMPTS = ['a satellite image of road, park', '', 'a satellite image of water']


@pytest.fixture(scope='module')
def sd3(tiny_sd3) -> SD3TextEncoder:
    return MODELS.build(
        dict(type='mmsynth.SD3TextEncoder', pretrained=str(tiny_sd3), max_sequence_length=16, dtype='float32'))


def class_names(**changes) -> ClassNameEmbedding:
    settings = dict(type='mmsynth.ClassNameEmbedding', classes=CLASSES, embed_dims=6, pooled_dims=5)
    return MODELS.build({**settings, **changes})


class TestClassNameEmbedding:

    @pytest.mark.parametrize('prompt, listed', [
        ('a satellite image of park', [1, 0, 0, 0]),
        ('a satellite image of park land', [0, 1, 0, 0]),
        ('a satellite image of road, park land', [0, 1, 1, 0]),
        ('A satellite  image of ROAD ,water,', [0, 0, 1, 1]),
        ('water, park', [1, 0, 0, 1]),
        ('a satellite image of ', [0, 0, 0, 0]),
        ('a satellite image of', [0, 0, 0, 0]),
        ('a satellite image', [0, 0, 0, 0]),
        ('', [0, 0, 0, 0]),
    ])
    def test_token_says_whether_its_class_is_listed(self, prompt, listed):
        encoder = class_names()
        tokens, pooled = encoder.encode([prompt])
        tables = torch.stack([encoder.absent, encoder.present])
        expected = tables[torch.tensor(listed), torch.arange(len(CLASSES))]
        assert torch.equal(tokens[0], expected)
        torch.testing.assert_close(pooled[0], encoder.pool(expected.mean(0)))

    @pytest.mark.parametrize('template, prompt', [
        ('{classes} seen from above', 'water, road seen from above'),
        ('in {classes}', 'in water, road'),
        ('<{classes}>', '<water, road>'),
        ('{classes}', 'water, road'),
    ])
    def test_template(self, template, prompt):
        encoder = class_names(template=template)
        assert torch.equal(encoder.encode([prompt])[0], encoder.encode(['water, road'])[0])

    def test_template_word_is_not_cut_off_a_name(self):
        encoder = class_names(classes=('inland water', 'land water'), template='in {classes}')
        tokens, _ = encoder.encode(['inland water'])
        assert torch.equal(tokens[0], torch.stack([encoder.present[0], encoder.absent[1]]))

    @pytest.mark.parametrize('template', ['a satellite image of {classes}', 'An image showing {classes} from above.'])
    @pytest.mark.parametrize('present', [[], [2], [0, 1, 3]])
    def test_reads_what_build_prompt_writes(self, template, present):
        encoder = class_names(template=template)
        prompt = build_prompt(np.array([255, *present]), CLASSES, template)
        listed = torch.zeros(len(CLASSES), 1, dtype=torch.bool)
        listed[present] = True
        assert torch.equal(encoder.encode([prompt])[0][0], torch.where(listed, encoder.present, encoder.absent))

    def test_order_in_the_prompt_does_not_matter(self):
        tokens, pooled = class_names().encode(['road, water', 'water, road'])
        torch.testing.assert_close(tokens[0], tokens[1])
        torch.testing.assert_close(pooled[0], pooled[1])

    def test_batch_is_its_prompts(self):
        encoder = class_names()
        tokens, pooled = encoder.encode(PROMPTS)
        assert tokens.shape == (3, 4, 6) and pooled.shape == (3, 5)
        for index, prompt in enumerate(PROMPTS):
            single = encoder.encode([prompt])
            assert torch.equal(tokens[index], single.prompt_embeds[0])
            torch.testing.assert_close(pooled[index], single.pooled_prompt_embeds[0])

    def test_learns(self):
        encoder = class_names()
        sum(embeds.square().sum() for embeds in encoder.encode(PROMPTS)).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())

    def test_unknown_word(self):
        with pytest.raises(ValueError, match=r"'forest' is no class name.*'park', 'park land', 'Road', 'water'"):
            class_names().encode(['a satellite image of road, forest'])

    @pytest.mark.parametrize('changes, message', [
        (dict(classes=['road', 'Road ']), 'name 1 is .Road .*different'),
        (dict(classes=['road, wide']), 'without commas'),
        (dict(classes=['']), 'non-empty'),
        (dict(classes=[]), 'at least one class'),
        (dict(classes='road'), 'got the string'),
        (dict(template='an image'), r'\{classes\} exactly once'),
        (dict(embed_dims=0), '`embed_dims`.*at least 1'),
    ])
    def test_mistakes(self, changes, message):
        with pytest.raises((ValueError, TypeError), match=message):
            class_names(**changes)

    def test_single_string(self):
        with pytest.raises(TypeError, match=r"write \['road'\]"):
            class_names().encode('road')


class TestSD3TextEncoder:

    def test_is_the_whole_pipelines_encoding(self, sd3, tiny_sd3):
        from diffusers import StableDiffusion3Pipeline
        pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
        with torch.no_grad():
            tokens, _, pooled, _ = pipeline.encode_prompt(
                PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=16)
        embeds = sd3.encode(PROMPTS)
        assert torch.equal(embeds.prompt_embeds, tokens) and torch.equal(embeds.pooled_prompt_embeds, pooled)

    def test_layout(self, sd3):
        tokens, pooled = sd3.encode(PROMPTS)
        assert tokens.shape == (3, CLIP_LENGTH + 16, JOINT_DIM) and pooled.shape == (3, POOLED_DIM)
        assert (tokens[:, :CLIP_LENGTH, sum(CLIP_WIDTHS):] == 0).all()  # CLIP part, zero-padded to T5's width
        assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])

    def test_batch_is_its_prompts(self, sd3):
        tokens, pooled = sd3.encode(PROMPTS)
        for index, prompt in enumerate(PROMPTS):
            single = sd3.encode([prompt])
            torch.testing.assert_close(tokens[index], single.prompt_embeds[0])
            torch.testing.assert_close(pooled[index], single.pooled_prompt_embeds[0])

    def test_frozen(self, sd3):
        sd3.train()
        assert not any(module.training for module in sd3.modules())
        assert not any(parameter.requires_grad for parameter in sd3.parameters())
        assert len(list(sd3.parameters())) > 0
        assert not sd3.encode(PROMPTS).prompt_embeds.requires_grad

    def test_bfloat16(self, sd3, tiny_sd3):
        half = SD3TextEncoder(str(tiny_sd3), max_sequence_length=16)
        embeds = half.encode(PROMPTS)
        assert {embeds.prompt_embeds.dtype, embeds.pooled_prompt_embeds.dtype} == {torch.bfloat16}
        # two layers in bfloat16 (8 bits of mantissa), values around 1
        torch.testing.assert_close(embeds.prompt_embeds.float(), sd3.encode(PROMPTS).prompt_embeds, atol=0.1, rtol=0.1)
        assert half.identity != sd3.identity and half.identity.endswith('-n16-bfloat16')

    def test_in_bfloat16_it_feeds_a_float32_generator(self, tiny_sd3):
        encoder = SD3TextEncoder(str(tiny_sd3), max_sequence_length=8, dtype='bfloat16')
        model = todsynth(text_encoder=encoder, network=dict(type='mmsynth.MMDiT', trunk=TRUNK | dict(
            joint_attention_dim=JOINT_DIM, pooled_projection_dim=POOLED_DIM), mask_channels=3))
        assert model.loss(images(), samples())['loss_velocity'].isfinite()
        assert model.synthesize(samples(), [1, 2, 3, 4])[0].generated_img.data.dtype == torch.uint8

    def test_identity_of_copy_and_of_other_weights(self, sd3, tiny_sd3, tmp_path):
        def identity(folder) -> str:
            return SD3TextEncoder(str(folder), max_sequence_length=16, dtype='float32').identity

        copied = shutil.copytree(tiny_sd3, tmp_path / 'elsewhere')
        assert identity(copied) == sd3.identity
        assert identity(write_tiny_sd3(tmp_path / 'other', seed=1)) != sd3.identity

    def test_identity_sees_one_changed_weight_one_token_and_the_length(self, sd3, tiny_sd3):
        changed = SD3TextEncoder(str(tiny_sd3), max_sequence_length=16, dtype='float32')
        changed.text_encoder_3.shared.weight.data[7, 3] += 1e-3
        longer = SD3TextEncoder(str(tiny_sd3), max_sequence_length=17, dtype='float32')
        assert len({sd3.identity, changed.identity, longer.identity}) == 3

    def test_folder_without_parts(self, tiny_sd3, tmp_path):
        copied = shutil.copytree(tiny_sd3, tmp_path / 'copy', ignore=shutil.ignore_patterns('*_3', 'model_index.json'))
        with pytest.raises(ValueError, match='model_index.json, text_encoder_3, tokenizer_3'):
            SD3TextEncoder(str(copied))

    def test_part_that_does_not_load(self, tiny_sd3, tmp_path):
        copied = shutil.copytree(tiny_sd3, tmp_path / 'copy')
        (copied / 'text_encoder_2' / 'model.safetensors').unlink()
        with pytest.raises(ValueError, match=r'do not load.*text_encoder_2\.\nGive a complete folder'):
            SD3TextEncoder(str(copied))

    @pytest.mark.parametrize('changes, message', [
        (dict(pretrained='/no/such/folder'), 'no folder /no/such/folder'),
        (dict(max_sequence_length=0), r'`max_sequence_length` must be in \[1, 512\], got 0'),
        (dict(dtype='float16'), "float32, bfloat16, got 'float16'"),
    ])
    def test_mistakes(self, tiny_sd3, changes, message):
        with pytest.raises(ValueError, match=message):
            SD3TextEncoder(**{'pretrained': str(tiny_sd3), **changes})


@pytest.fixture(scope='module')
def clip(tiny_sd15) -> CLIPTextEncoder:
    return MODELS.build(dict(type='mmsynth.CLIPTextEncoder', pretrained=str(tiny_sd15)))


class TestCLIPTextEncoder:

    def test_is_the_whole_pipelines_encoding(self, clip, tiny_sd15):
        """The last hidden state after the final norm, of 77 tokens, the empty prompt among them."""
        from diffusers import StableDiffusionPipeline
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd15)
        with torch.no_grad():
            tokens, negative = pipeline.encode_prompt(PROMPTS, 'cpu', 1, True)
        embeds = clip.encode(PROMPTS)
        torch.testing.assert_close(embeds.prompt_embeds, tokens)
        torch.testing.assert_close(clip.encode([''])[0][0], negative[0])
        assert tokens.shape == (3, CLIP_LENGTH, CLIP_WIDTHS[0]) and embeds.pooled_prompt_embeds.shape[0] == 3
        assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])

    def test_long_prompts_are_cut(self, clip):
        assert torch.isfinite(clip.encode(['road, park ' * 100]).prompt_embeds).all()

    def test_frozen(self, clip):
        clip.train()
        assert not any(module.training for module in clip.modules())
        assert len(list(clip.parameters())) > 0 and not any(p.requires_grad for p in clip.parameters())
        assert not clip.encode(PROMPTS).prompt_embeds.requires_grad

    def test_it_fills_a_prompt_cache(self, clip, tmp_path):
        cache = PromptCache(tmp_path, clip.identity)
        assert cache.encode_missing(PROMPTS, clip) == 3
        torch.testing.assert_close(cache.get(PROMPTS[0]).prompt_embeds, clip.encode(PROMPTS)[0][0])

    def test_identity_sees_weights_and_dtype_but_not_the_place(self, clip, tiny_sd15, tmp_path):
        copied = shutil.copytree(tiny_sd15, tmp_path / 'elsewhere', ignore=shutil.ignore_patterns('unet', 'vae'))
        other = CLIPTextEncoder(str(write_tiny_sd15(tmp_path / 'other', seed=1)))
        half = CLIPTextEncoder(str(tiny_sd15), dtype='bfloat16')
        assert CLIPTextEncoder(str(copied)).identity == clip.identity
        assert len({clip.identity, other.identity, half.identity}) == 3
        assert half.encode(PROMPTS).prompt_embeds.dtype == torch.bfloat16

    def test_in_bfloat16_it_feeds_a_float32_generator(self, tiny_sd15):
        encoder = CLIPTextEncoder(str(tiny_sd15), dtype='bfloat16')
        width = encoder.encode(['']).prompt_embeds.shape[-1]
        network = NETWORK | dict(unet=UNET | dict(cross_attention_dim=width))
        model = tisynth(text_encoder=encoder, network=network)
        assert model.loss(images(), referenced())['loss_noise'].isfinite()
        assert model.synthesize(referenced(), [1, 2, 3, 4])[0].finite

    @pytest.mark.parametrize('remove, message', [
        ('tokenizer', 'lacks tokenizer. .*text encoder and tokenizer are needed: download'),
        ('text_encoder/model.safetensors', 'the text encoder of .* does not load'),
    ])
    def test_an_incomplete_folder(self, tiny_sd15, tmp_path, remove, message):
        copied = shutil.copytree(tiny_sd15, tmp_path / 'copy', ignore=shutil.ignore_patterns('unet', 'vae'))
        (shutil.rmtree if (copied / remove).is_dir() else Path.unlink)(copied / remove)
        with pytest.raises(ValueError, match=message):
            CLIPTextEncoder(str(copied))

    @pytest.mark.parametrize('changes, message', [
        (dict(pretrained='/no/such/folder'), 'no folder /no/such/folder.* stable-diffusion-v1-5'),
        (dict(dtype='float16'), "float32, bfloat16, got 'float16'"),
    ])
    def test_mistakes(self, tiny_sd15, changes, message):
        with pytest.raises(ValueError, match=message):
            CLIPTextEncoder(**{'pretrained': str(tiny_sd15), **changes})


def test_tiny_folder_is_a_whole_pipeline(tiny_sd3):
    from diffusers import StableDiffusion3Pipeline
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    images = pipeline(PROMPTS[0], height=64, width=64, num_inference_steps=1, output_type='np').images
    assert images.shape == (1, 64, 64, 3)
    assert json.loads((tiny_sd3 / 'vae' / 'config.json').read_text())['shift_factor'] == 0.0609
