"""The sizes at which generators are measured: that of the demo, one between, and that of the published systems."""
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from benchmarks.parts import SD3_VAE, SEGMENTOR
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from mmengine.config import Config
from torch import Tensor, nn

from mmsynth.guidance import SegmentorCritic
from mmsynth.models.encoders import LatentCodec, PatchPCACodec, VAECodec
from mmsynth.models.networks import ControlledUNet, MMDiT

_DEMO = Path(__file__).resolve().parents[3] / 'projects' / 'demo' / 'configs' / '_base_' / 'models'
_KEYS = ('CrossAttnDownBlock2D', 'DownBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D')
# Stable Diffusion 3.5 medium's transformer, 2.24 B parameters, and 1.5's U-Net, 0.86 B
SD35_MEDIUM = dict(
    sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
    num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
    pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm='rms_norm')
SD15_UNET = dict(
    sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
    down_block_types=(_KEYS[0], ) * 3 + _KEYS[1:2], up_block_types=_KEYS[3:] + (_KEYS[2], ) * 3,
    cross_attention_dim=768, attention_head_dim=8)
SD15_VAE = SD3_VAE | dict(latent_channels=4, scaling_factor=0.18215, shift_factor=None, use_quant_conv=True,
                          use_post_quant_conv=True)
_NARROW_VAE = dict(block_out_channels=(64, 128, 256, 256))


@dataclass(frozen=True)
class Shape:
    """What is built and measured.

    Attributes:
        generator: 'todsynth' or 'tisynth'.
        network: Settings of diffusers' ``SD3Transformer2DModel`` or ``UNet2DConditionModel``.
        mask_channels: Channels of the control image, or of its latent.
        size: Side of the square images in pixels.
        factor: Pixels per latent cell and side.
        text_tokens: Tokens of a prompt.
        num_steps: Sampling steps of an image.
        vae: Settings of the ``AutoencoderKL`` that decodes; None for the demo's PatchPCACodec.
        segmentor: The model of the critic's config.
        locality: ``mask_locality`` of TISynth's network.
    """

    generator: Literal['todsynth', 'tisynth']
    network: dict[str, Any]
    mask_channels: int
    size: int
    factor: int
    text_tokens: int
    num_steps: int
    vae: dict[str, Any] | None
    segmentor: dict[str, Any]
    locality: bool = False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.network['in_channels'], self.size // self.factor, self.size // self.factor

    def at_depth(self, depth: int) -> 'Shape':
        """The same with fewer layers: blocks of the transformer, or layers per level of the U-Net.

        Raises:
            ValueError: If ``depth`` is below 1 or above the shape's own.
        """
        key = 'num_layers' if self.generator == 'todsynth' else 'layers_per_block'
        whole = self.network[key]
        if not 1 <= depth <= whole:
            raise ValueError(f'`depth` must be in [1, {whole}] for this shape, got {depth}.')
        changes = {key: depth}
        if 'dual_attention_layers' in self.network:  # of the same share
            dual = math.ceil(len(self.network['dual_attention_layers']) * depth / whole)
            changes['dual_attention_layers'] = tuple(range(dual))
        return replace(self, network=self.network | changes)

    def stock(self) -> nn.Module:
        """diffusers' own network, without mask and reference."""
        return (SD3Transformer2DModel if self.generator == 'todsynth' else UNet2DConditionModel)(**self.network)

    def own(self, *, legacy: bool = False) -> nn.Module:
        """The same with what steers it."""
        if self.generator == 'todsynth':
            return MMDiT(trunk=self.network, mask_channels=self.mask_channels, legacy=legacy)
        return ControlledUNet(unet=self.network, mask_channels=self.mask_channels, mask_factor=self.factor,
                              mask_locality=self.locality, legacy=legacy)

    def codec(self) -> LatentCodec:
        """The latent codec, with weights of no meaning."""
        if self.vae is not None:
            return VAECodec(config=self.vae)
        codec = PatchPCACodec(self.factor, self.network['in_channels'])
        codec.fit(torch.rand(8, 3, 16 * self.factor, 16 * self.factor) * 2 - 1)
        return codec

    def critic(self) -> SegmentorCritic:
        """The segmentor that guides, with weights of no meaning."""
        return SegmentorCritic(dict(model=self.segmentor))

    def text(self, device: str) -> list[Tensor]:
        """What the prompt is to the network: embeddings (1, T, D), and of TODSynth the pooled one (1, P)."""
        if self.generator == 'todsynth':
            return [torch.randn(1, self.text_tokens, self.network['joint_attention_dim'], device=device),
                    torch.randn(1, self.network['pooled_projection_dim'], device=device)]
        return [torch.randn(1, self.text_tokens, self.network['cross_attention_dim'], device=device)]

    def control(self, device: str) -> list[Tensor]:
        """What steers: the mask's latent (1, Cm, h, w); or the control image (1, Cm, H, W) and reference latents."""
        if self.generator == 'todsynth':
            return [torch.randn(1, self.mask_channels, *self.latent_shape[1:], device=device)]
        return [torch.randn(1, self.mask_channels, self.size, self.size, device=device),
                torch.randn(1, *self.latent_shape, device=device)]


def load_shape(generator: str, name: str) -> Shape:
    """One of the shapes: 'demo', 'mid' or 'full', of 'todsynth' or 'tisynth'."""
    if name == 'demo':
        return _demo(generator)
    full = name == 'full'
    if generator == 'todsynth':
        network = SD35_MEDIUM if full else SD35_MEDIUM | dict(
            num_layers=6, num_attention_heads=6, caption_projection_dim=384, joint_attention_dim=512,
            pooled_projection_dim=256, dual_attention_layers=(0, 1, 2), sample_size=32)
        return Shape('todsynth', network, mask_channels=16, size=512 if full else 128, factor=8,
                     text_tokens=333 if full else 77, num_steps=23, vae=SD3_VAE if full else SD3_VAE | _NARROW_VAE,
                     segmentor=SEGMENTOR)
    network = SD15_UNET if full else SD15_UNET | dict(
        block_out_channels=(64, 128, 256, 256), layers_per_block=1, cross_attention_dim=256, sample_size=16)
    return Shape('tisynth', network, mask_channels=3, size=512 if full else 128, factor=8, text_tokens=77, num_steps=50,
                 vae=SD15_VAE if full else SD15_VAE | _NARROW_VAE, segmentor=SEGMENTOR)


def _demo(generator: str) -> Shape:
    model = Config.fromfile(str(_DEMO / f'{generator}_tiny.py')).model
    network = model.network
    settings = network.trunk if generator == 'todsynth' else network.unet
    segmentor = Config.fromfile(str(_DEMO / 'fcn_r18_tiny.py')).model
    return Shape(generator, settings.to_dict(), mask_channels=network.mask_channels, size=48, factor=4,
                 text_tokens=len(model.text_encoder.classes), num_steps=model.num_steps, vae=None,
                 segmentor=segmentor.to_dict(), locality=network.get('mask_locality', False))
