"""The codec and the segmentor that the benchmark measures: a config's own, or Stable Diffusion 3's layout."""
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config

from mmsynth.guidance import Critic, SegmentorCritic, TinyDecoder
from mmsynth.models.encoders import AutoencoderCodec, LatentCodec, VAECodec
from mmsynth.registry import MODELS
from mmsynth.synthesis.build import build_generator
from mmsynth.utils.configs import find_config

# The VAE of Stable Diffusion 3 and 3.5: 8 pixels per cell, 16 channels.
SD3_VAE = dict(
    down_block_types=('DownEncoderBlock2D', ) * 4,
    up_block_types=('UpDecoderBlock2D', ) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False)
# DeepLabV3+ on ResNet-50, with random weights
SEGMENTOR = Config.fromfile(find_config('configs/_base_/models/deeplabv3plus_r50.py')).model.to_dict() | dict(
    pretrained=None)


@dataclass(frozen=True)
class Parts:
    """What every way of asking the critic is built from.

    Attributes:
        codec: The generator's latent codec.
        critic: The segmentor.
        latent_shape: (C, h, w) of the latents measured.
    """

    codec: LatentCodec
    critic: Critic
    latent_shape: tuple[int, int, int]


def build_parts(cfg: Config | None, checkpoint: str | None, size: int) -> Parts:
    """Build codec and segmentor.

    Args:
        cfg: A synthesis config; None for :data:`SD3_VAE` and :data:`SEGMENTOR` with random weights. Its segmentor is
            built without its weights, which cost nothing and need not be there.
        checkpoint: The generator's weights, from which the codec is taken; None builds the codec alone, and fits on
            noise what has to be fitted.
        size: Side of the square images in pixels.

    Raises:
        ValueError: If the config has no segmentor, or ``size`` does not fit the codec.
    """
    if cfg is None:
        codec, critic = VAECodec(config=SD3_VAE), SegmentorCritic(dict(model=SEGMENTOR))
    else:
        critic = _build_critic(cfg)
        codec = _build_codec(cfg) if checkpoint is None else build_generator(cfg, checkpoint).latent_codec
    return Parts(codec, critic, codec.latent_shape(size, size))


def tiny_decoder(codec: LatentCodec) -> TinyDecoder:
    """A decoder in TAESD's layout at the codec's channels and factor, as TAESD3 for Stable Diffusion 3.

    Raises:
        ValueError: If the factor is no power of 2.
    """
    stages = codec.factor.bit_length()
    if 2**(stages - 1) != codec.factor:
        raise ValueError(f'{codec.factor} pixels per cell is no power of 2')
    blocks = (*[3] * (stages - 1), 1)
    return TinyDecoder(config=dict(
        latent_channels=codec.channels, num_decoder_blocks=blocks, num_encoder_blocks=blocks[::-1],
        encoder_block_out_channels=(64, ) * stages, decoder_block_out_channels=(64, ) * stages))


def _build_codec(cfg: Config) -> LatentCodec:
    codec = MODELS.build(cfg.model.latent_codec)
    if codec.needs_fit:
        if isinstance(codec, AutoencoderCodec):
            codec.iterations = 1  # costs are the same however well it is fitted
        codec.fit(torch.rand(8, 3, 16 * codec.factor, 16 * codec.factor) * 2 - 1)
    return codec


def _build_critic(cfg: Config) -> Critic:
    settings: Any = ((cfg.get('synthesis') or {}).get('guidance') or {}).get('critic')
    if settings is None:
        raise ValueError(f'{cfg.filename}: it has no `synthesis.guidance.critic`; name there the segmentor that '
                         'guides, as projects/demo/configs/todsynth.py does, or leave the config out.')
    settings = {key: value for key, value in settings.items() if key != 'checkpoint'}
    if settings['type'].endswith('LatentCritic'):
        raise ValueError(f'{cfg.filename}: `synthesis.guidance.critic` is a LatentCritic; name the segmentor, which '
                         'the other ways of asking the critic need.')
    return MODELS.build(settings)
