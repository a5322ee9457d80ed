"""Tiny parts for the tests of generators: a TODSynth, one that knows the answer, masks, images, and a segmentor."""
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.structures import PixelData
from tiny_backbone import JOINT_DIM, POOLED_DIM
from torch import Tensor, nn

from mmsynth.models import OneHotCodec, PatchPCACodec, TODSynth
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample

CLASSES, SIZE, CHANNELS = ['road', 'park', 'water'], 16, 6
PROMPTS = ['a satellite image of road', 'a satellite image of park, water', '', 'road, water']
TRUNK = dict(
    sample_size=4,
    patch_size=1,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    caption_projection_dim=16,
    joint_attention_dim=12,
    pooled_projection_dim=10,
    pos_embed_max_size=4,
    dual_attention_layers=(0, ),
    qk_norm='rms_norm')
TEXT = dict(type='mmsynth.ClassNameEmbedding', classes=CLASSES, embed_dims=12, pooled_dims=10)


def images(count: int = 4) -> Tensor:
    """Images (count, 3, 16, 16) in [-1, 1]; the codec is fitted on the first four."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def samples(count: int = 4, size: int = SIZE) -> list[SynthDataSample]:
    """New samples with masks and, in turn, one class, two, none and a bare list in the prompt."""
    masks = torch.randint(3, (count, 1, size, size), generator=torch.Generator().manual_seed(2))
    metainfo = [dict(sample_id=f's{row}', prompt=PROMPTS[row]) for row in range(count)]
    return [SynthDataSample(metainfo=metainfo[row], gt_sem_seg=PixelData(data=masks[row])) for row in range(count)]


def todsynth(**changes) -> TODSynth:
    """A tiny generator with random weights everywhere, so that every input makes a difference."""
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='mmsynth.TODSynth',
        network=dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3),
        latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=4, channels=CHANNELS),
        label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3),
        text_encoder=TEXT,
        num_steps=4) | changes)
    model.latent_codec.fit(images())
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


def pretrained_config(folder: Path, *, network: dict | None = None, **changes) -> dict:
    """The config of a TODSynth on a folder of :func:`tiny_backbone.write_tiny_sd3`, with learned class names."""
    return dict(
        type='mmsynth.TODSynth',
        network=dict(type='mmsynth.MMDiT', pretrained=str(folder)) | (network or {}),
        latent_codec=dict(type='mmsynth.VAECodec', pretrained=str(folder)),
        label_codec=dict(type='mmsynth.GreyLevelCodec', num_classes=3),
        text_encoder=TEXT | dict(embed_dims=JOINT_DIM, pooled_dims=POOLED_DIM),
        num_steps=2) | changes


def velocity(model: TODSynth, prompts: Sequence[str] = PROMPTS[:2]) -> Tensor:
    """What a generator predicts on a fixed latent, for two masks and prompts."""
    latents = torch.randn(2, *model.latent_codec.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(3))
    masks = torch.stack([sample.gt_sem_seg.data[0] for sample in samples(2)])
    with torch.no_grad():
        condition = model.encode_condition(prompts, masks)
        return model.network(latents, torch.tensor([900., 300.]), condition.prompt_embeds,
                             condition.pooled_prompt_embeds, condition.mask_latents)


def perturb(model: nn.Module, seed: int = 4) -> nn.Module:
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class Oracle(nn.Module):
    """Knows the clean latents, and so the true velocity ``(z - z0) / sigma``, at the timestep ``1000 sigma``."""

    latent_channels, mask_channels = 48, 3

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = nn.Parameter(clean)

    def branch_parameters(self, branch: str) -> dict[str, nn.Parameter]:
        return {'clean': self.clean} if branch == 'image' else {}

    def forward(self, latents: Tensor, timestep: Tensor, *condition: Tensor) -> Tensor:
        assert timestep.shape == (len(latents), ) and len(condition) == 3
        return (latents - self.clean) / (timestep / 1000)[:, None, None, None]


def oracle(**changes) -> TODSynth:
    """A generator that generates :func:`images`, whose codec is exact."""
    codec = PatchPCACodec(4, 48)
    codec.fit(images())
    return TODSynth(Oracle(codec.encode(images())), codec, OneHotCodec(3), TEXT, **changes)


def segmentor(data_preprocessor: dict | None = None, head: dict | None = None, **changes) -> dict:
    """The config of a tiny FCN of three classes; ``data_preprocessor`` and ``head`` change its parts."""
    norm = dict(type='BN')
    backbone = dict(type='ResNetV1c', depth=18, base_channels=4, stem_channels=4, strides=(1, 1, 1, 1), norm_cfg=norm)
    preprocessor = dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                        bgr_to_rgb=True, pad_val=0, seg_pad_val=255)
    decode_head = dict(type='FCNHead', in_channels=32, channels=8, num_convs=1, concat_input=False, in_index=3,
                       num_classes=3, norm_cfg=norm, align_corners=False, loss_decode=dict(type='CrossEntropyLoss'))
    return dict(
        type='EncoderDecoder',
        data_preprocessor=preprocessor | (data_preprocessor or {}),
        backbone=backbone,
        decode_head=decode_head | (head or {}),
        test_cfg=dict(mode='whole')) | changes
