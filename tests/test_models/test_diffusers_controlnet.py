"""ControlNets of diffusers as generators: the predictions of diffusers' own pipelines, guidance, training, a pool."""
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, SD3ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel
from mmengine.config import Config
from PIL import Image
from tiny_backbone import write_tiny_sd3, write_tiny_sd15
from tiny_generator import samples
from tiny_segmentors import segmentor
from torch import Tensor

from mmsynth.apis import generate, init_generator, synthesize
from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.models import BaseGenerator
from mmsynth.models.convert import convert_checkpoint
from mmsynth.registry import MODELS

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
SIDE = dict(sd15=32, sd3=16)
KINDS = ['sd15', 'sd3']


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """A ControlNet as it is after a training: its zero convolutions are not zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Per kind the folders of a backbone and of a ControlNet for it."""
    root = tmp_path_factory.mktemp('controlnets')
    torch.manual_seed(0)
    write_tiny_sd15(root / 'sd15')
    unet = UNet2DConditionModel.from_pretrained(root / 'sd15', subfolder='unet')
    shaken(ControlNetModel.from_unet(unet)).save_pretrained(root / 'sd15_control')
    write_tiny_sd3(root / 'sd3', latent_channels=4, sample_size=16)
    transformer = SD3Transformer2DModel.from_pretrained(root / 'sd3', subfolder='transformer')
    shaken(SD3ControlNetModel.from_transformer(transformer, num_layers=1, num_extra_conditioning_channels=0)
           ).save_pretrained(root / 'sd3_control')
    return {kind: (str(root / kind), str(root / f'{kind}_control')) for kind in KINDS}


def settings(folders: dict[str, tuple[str, str]], kind: str, **changes) -> dict:
    pretrained, controlnet = folders[kind]
    return dict(type='mmsynth.DiffusersControlNet', pretrained=pretrained, controlnet=controlnet, palette=PALETTE,
                num_steps=2, guidance_scale=2.0) | changes


@pytest.fixture(scope='module', params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope='module')
def generator(folders: dict[str, tuple[str, str]], kind: str) -> BaseGenerator:
    return MODELS.build(settings(folders, kind)).eval()


def images_of(generator: BaseGenerator, kind: str, guidance: CRFM | None = None) -> Tensor:
    done = generator.synthesize(samples(2, SIDE[kind]), [1, 2], guidance=guidance)
    return torch.stack([sample.generated_img.data.float() for sample in done])


def test_the_prediction_is_that_of_the_parts_as_their_pipeline_calls_them(folders: dict, generator: BaseGenerator,
                                                                        kind: str) -> None:
    pretrained, controlnet = folders[kind]
    masks = torch.randint(3, (2, SIDE[kind], SIDE[kind]))
    masks[:, :4] = 255
    colours = torch.tensor([*PALETTE, [0, 0, 0]]).float()[masks.masked_fill(masks == 255, 3)].permute(0, 3, 1, 2) / 255
    latents = torch.randn(2, *generator.latent_codec.latent_shape(SIDE[kind], SIDE[kind]))
    time = torch.tensor([500., 500.])
    condition = generator.encode_condition(['a road', 'a park'], masks)
    if kind == 'sd15':
        control, unet = (ControlNetModel.from_pretrained(controlnet),
                         UNet2DConditionModel.from_pretrained(pretrained, subfolder='unet'))
        down, middle = control(latents, time, condition.prompt_embeds, colours, return_dict=False)
        expected = unet(latents, time, condition.prompt_embeds, down_block_additional_residuals=down,
                        mid_block_additional_residual=middle).sample
        torch.testing.assert_close(generator._predict(latents, time, condition), expected)
        return
    control = SD3ControlNetModel.from_pretrained(controlnet)
    transformer = SD3Transformer2DModel.from_pretrained(pretrained, subfolder='transformer')
    embeds = dict(encoder_hidden_states=condition.prompt_embeds, pooled_projections=condition.pooled_prompt_embeds)
    seen = generator.latent_codec.encode(colours * 2 - 1)
    residuals = control(latents, seen, timestep=time, **embeds, return_dict=False)[0]
    expected = transformer(latents, timestep=time, **embeds, block_controlnet_hidden_states=residuals).sample
    torch.testing.assert_close(generator._velocity(latents, time, condition), expected)


def test_the_mask_and_its_strength_make_a_difference(folders: dict, generator: BaseGenerator, kind: str) -> None:
    plain = images_of(generator, kind)
    other = MODELS.build(settings(folders, kind, conditioning_scale=0.0)).eval()
    assert (images_of(other, kind) - plain).abs().max() > 1
    guided = MODELS.build(settings(folders, kind, mask_guidance_scale=3.0)).eval()
    assert (images_of(guided, kind) - plain).abs().max() > 1


def test_a_segmentor_guides_it(generator: BaseGenerator, kind: str) -> None:
    guidance = CRFM(SegmentorCritic(dict(model=segmentor())), objective='mask', step_size=0.3, measure_after=True)
    done = generator.synthesize(samples(2, SIDE[kind]), [1, 2], guidance=guidance)
    records = [record for sample in done for record in sample.guidance_trace]
    assert len(records) == 4 and not any(record['skipped'] for record in records)
    assert sum(record['loss_after'] - record['loss_before'] for record in records) < 0


def test_training_goes_on_with_the_controlnet_alone(folders: dict, kind: str) -> None:
    model = MODELS.build(settings(folders, kind))
    assert {name.split('.')[1] for name in model.trainable_names() if name.startswith('network.')} == {'controlnet'}
    loss, = model.loss(torch.rand(2, 3, SIDE[kind], SIDE[kind]) * 2 - 1, samples(2, SIDE[kind])).values()
    loss.backward()
    assert any(value.grad is not None and value.grad.any() for value in model.network.controlnet.parameters())


def test_a_pool_without_a_checkpoint(folders: dict, kind: str, tmp_path: Path) -> None:
    (tmp_path / 'masks').mkdir()
    for number in range(2):
        mask = np.random.default_rng(number).integers(0, 3, (SIDE[kind], SIDE[kind]), np.uint8)
        Image.fromarray(mask).save(tmp_path / 'masks' / f'{number}.png')
    (tmp_path / 'masks.jsonl').write_text('{"source": "masks/0.png"}\n{"source": "masks/1.png"}\n')
    cfg = Config(dict(model=settings(folders, kind), synthesis=dict(dataset=dict(
        type='mmsynth.ManifestDataset', data_root=str(tmp_path), ann_file='masks.jsonl',
        metainfo=dict(classes=('road', 'park', 'water'), palette=PALETTE),
        pipeline=[dict(type='mmsynth.LoadSegMap'), dict(type='mmsynth.BuildPrompt'),
                  dict(type='mmsynth.PackSynthInputs')]))))
    pool = synthesize(cfg, None, tmp_path / 'pool')
    assert len(pool) == 2 and pool.records[0].generator['weights_sha256'] is None
    image, = generate(init_generator(cfg), [pool.load_mask(pool.records[0])])
    assert image.shape == (SIDE[kind], SIDE[kind], 3)


def test_the_diffusers_layout_has_no_place_for_the_networks_of_sd3(folders: dict, tmp_path: Path) -> None:
    cfg = Config(dict(model=settings(folders, 'sd3')))
    with pytest.raises(ValueError, match='`to`: .* SD3ControlNet of a TODSynth'):
        convert_checkpoint(cfg, tmp_path / 'a.pth', tmp_path / 'out', to='diffusers')


def test_another_kind_is_refused(folders: dict) -> None:
    with pytest.raises(ValueError, match='`controlnet`: .* is a UNet2DConditionModel'):
        MODELS.build(settings(folders, 'sd15', controlnet=f'{folders["sd15"][0]}/unet'))
