"""TISynth's network: Stable Diffusion 1.5's U-Net, steered by a mask and a reference (10.1016/j.inffus.2025.103839).

The U-Net is diffusers' own. A mask branch and a reference branch are copies of its encoder; every transformer block of
its middle and decoder looks at their outputs by all-in attention. Nothing is added to the skip connections.

Legend: B batch, C latent channels, Cm mask channels, H W pixels, h w latent cells, D width of the first level,
T text tokens.
"""
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmsynth.models.networks.all_in_attention import AllInAttention, run_transformer
from mmsynth.models.networks.control_branch import EMBEDDING_CHANNELS, FACTORS, ControlBranch
from mmsynth.registry import MODELS

# branch of the network → the first part of its parameters' names
UNET_BRANCHES = dict(unet='unet', attention='fusions', mask='mask_branch', reference='reference_branch')
_BLOCK_TYPES = dict(
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    mid_block_type=('UNetMidBlock2DCrossAttn', ),
    up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'))
# inputs and layers of other diffusion models, which the branches would not get
_UNSUPPORTED = ('class_embed_type', 'num_class_embeds', 'addition_embed_type', 'encoder_hid_dim',
                'encoder_hid_dim_type', 'time_cond_proj_dim', 'timestep_post_act', 'time_embedding_act_fn',
                'dual_cross_attention', 'center_input_sample')


class Fusions(nn.Module):
    """The all-in attentions of a U-Net.

    Args:
        unet: The U-Net.
        zero_start, mask_locality: See :class:`AllInAttention`.

    Attributes:
        middle: One for each transformer block of the middle.
        decoder: For each decoder block a list of them, empty where the block has no attention.
    """

    def __init__(self, unet: UNet2DConditionModel, *, zero_start: bool, mask_locality: bool) -> None:
        super().__init__()

        def build(transformer: Transformer2DModel | None, control_dim: int) -> nn.ModuleList:
            blocks = () if transformer is None else transformer.transformer_blocks
            return nn.ModuleList(AllInAttention(block, control_dim, zero_start=zero_start, mask_locality=mask_locality)
                                 for block in blocks)

        widths = encoder_widths(unet)
        self.middle = build(unet.mid_block.attentions[0], widths[-1])
        self.decoder = nn.ModuleList(
            build(transformer, width) for transformer, width in zip(decoder_transformers(unet), reversed(widths)))


@MODELS.register_module()
class ControlledUNet(nn.Module):
    """Stable Diffusion 1.5's U-Net with a mask and a reference input.

    A new one computes what the U-Net alone does, until it is trained.

    Args:
        pretrained: A folder or hub id in the diffusers layout whose ``unet`` is loaded.
        unet: Settings of a ``UNet2DConditionModel`` built from scratch. Exactly one of the two is given.
        mask_channels: Channels Cm of the control image, which the mask branch reads at pixel resolution.
        mask_factor: Pixels per latent cell and side, 1, 2, 4 or 8: the latent codec's ``factor``, Stable Diffusion's
            is 8.
        reference_channels: Channels of the reference's latents; by default those of the latent.
        conditioning_embedding_out_channels: Channels of the four layers of both hint encoders, Stable Diffusion's
            ControlNet's by default; a network from scratch whose U-Net is narrow wants narrower ones, which cost less.
        mask_locality: Let tokens look at the mask near their own place first, see :class:`AllInAttention`; for networks
            that are trained from scratch.
        legacy: Start and train as released: the all-in attentions start at random and the branches' outputs at zero,
            and the U-Net's encoder and middle block always run without gradient, so that the all-in attention of the
            middle is never trained.
        gradient_checkpointing: Recompute the blocks in the backward pass instead of storing their activations.

    Attributes:
        unread_outputs: Indices of the branch outputs that nobody reads, because the decoder blocks opposite have no
            attention. The release has weights for them; the branches here have none.

    Raises:
        ValueError: If not exactly one of ``pretrained`` and ``unet`` is given, the folder has no U-Net, the U-Net is of
            another kind than Stable Diffusion 1.5's, or a number is out of range.
    """

    def __init__(self,
                 pretrained: str | None = None,
                 unet: dict | None = None,
                 mask_channels: int = 3,
                 mask_factor: int = 8,
                 reference_channels: int | None = None,
                 conditioning_embedding_out_channels: Sequence[int] = EMBEDDING_CHANNELS,
                 mask_locality: bool = False,
                 legacy: bool = False,
                 gradient_checkpointing: bool = False) -> None:
        if mask_factor not in FACTORS:
            raise ValueError(f'`mask_factor` must be one of {", ".join(map(str, FACTORS))}, got {mask_factor!r}; it is '
                             "the latent codec's pixels per latent cell.")
        super().__init__()
        self.unet = _build_unet(pretrained, unet)
        self.mask_channels = mask_channels
        self.mask_factor = mask_factor
        self.reference_channels = self.latent_channels if reference_channels is None else reference_channels
        self.conditioning_embedding_out_channels = tuple(conditioning_embedding_out_channels)
        self.legacy = legacy
        self.gradient_checkpointing = gradient_checkpointing
        self.unread_outputs = unread_outputs(self.unet)
        branch = partial(
            ControlBranch, self.unet, conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            unread=self.unread_outputs, zero_start=legacy)
        self.mask_branch = branch(hint_channels=mask_channels, factor=mask_factor)
        self.reference_branch = branch(hint_channels=self.reference_channels, factor=1)
        self.fusions = Fusions(self.unet, zero_start=not legacy, mask_locality=mask_locality)
        if gradient_checkpointing:
            for network in (self.unet, self.mask_branch.network, self.reference_branch.network):
                network.enable_gradient_checkpointing()

    @property
    def latent_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def cross_attention_dim(self) -> int:
        return self.unet.config.cross_attention_dim

    def branch_parameters(self, branch: str) -> dict[str, nn.Parameter]:
        """The named parameters of one branch.

        'unet' is Stable Diffusion's own weights, 'attention' the all-in attentions and their norms, 'mask' and
        'reference' a branch with its hint encoder.
        """
        first = UNET_BRANCHES.get(branch)
        return {name: value for name, value in self.named_parameters() if name.split('.')[0] == first}

    def encode_mask(self, control: Tensor) -> Tensor:
        """Control image (B, Cm, H, W) → mask hint (B, D, h, w), the same at every step."""
        return self.mask_branch.hint_encoder(control)

    def encode_reference(self, reference_latents: Tensor) -> Tensor:
        """Scaled latents of the reference (B, C, h, w) → reference hint (B, D, h, w), the same at every step."""
        return self.reference_branch.hint_encoder(reference_latents)

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, mask_hint: Tensor,
                reference_hint: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            latents: Noisy latents (B, C, h, w).
            timestep: (B,), in [0, 1000).
            prompt_embeds: (B, T, cross_attention_dim).
            mask_hint: Of :meth:`encode_mask`.
            reference_hint: Of :meth:`encode_reference`.

        Returns:
            Noise (B, C, h, w).

        Raises:
            ValueError: If a hint has another size than the latents.
        """
        self._check_hints(latents, mask_hint, reference_hint)
        unet = self.unet
        masks = self.mask_branch(latents, timestep, prompt_embeds, mask_hint)
        references = self.reference_branch(latents, timestep, prompt_embeds, reference_hint)
        temb = unet.time_embedding(unet.get_time_embed(latents, timestep))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.legacy):
            skips = self._encode(latents, temb, prompt_embeds)
            features = self._middle(skips[-1], temb, prompt_embeds, references[-1], masks[-1])
        features = self._decode(features, skips, temb, prompt_embeds, references, masks)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(features)))

    def _encode(self, latents: Tensor, temb: Tensor, text: Tensor) -> list[Tensor]:
        """What each input block of the U-Net gives."""
        skips = [self.unet.conv_in(latents)]
        for block in self.unet.down_blocks:
            context = dict(encoder_hidden_states=text) if hasattr(block, 'attentions') else {}
            skips += block(skips[-1], temb, **context)[1]
        return skips

    def _middle(self, features: Tensor, temb: Tensor, text: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        first, last = self.unet.mid_block.resnets
        features = self._run(first, features, temb)
        transformer = self.unet.mid_block.attentions[0]
        features = self._run(run_transformer, transformer, self.fusions.middle, features, text, reference, mask)
        return self._run(last, features, temb)

    def _decode(self, features: Tensor, skips: list[Tensor], temb: Tensor, text: Tensor, references: list[Tensor],
                masks: list[Tensor]) -> Tensor:
        """Each decoder block reads the skip connection and the branch outputs of the input block opposite to it."""
        opposite = len(skips) - 1
        for block in self.unet.up_blocks:
            for resnet, transformer in zip(block.resnets, transformers_of(block)):
                features = self._run(resnet, torch.cat([features, skips[opposite]], 1), temb)
                fusions = self.fusions.decoder[len(skips) - 1 - opposite]
                if transformer is not None:
                    features = self._run(run_transformer, transformer, fusions, features, text, references[opposite],
                                         masks[opposite])
                opposite -= 1
            if block.upsamplers is not None:
                features = block.upsamplers[0](features, skips[opposite].shape[-2:])  # odd sizes too
        return features

    def _run(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def _check_hints(self, latents: Tensor, mask_hint: Tensor, reference_hint: Tensor) -> None:
        size, mask, reference = (tuple(value.shape[-2:]) for value in (latents, mask_hint, reference_hint))
        if mask != size:
            raise ValueError(f'the mask hint has {mask[0]}x{mask[1]} cells, the latents have {size[0]}x{size[1]}: '
                             f'`network.mask_factor` is {self.mask_factor}; set it to the pixels per latent cell of '
                             'the latent codec.')
        if reference != size:
            raise ValueError(f'the reference hint has {reference[0]}x{reference[1]} cells, the latents have '
                             f'{size[0]}x{size[1]}; a reference must have the size of its image.')


def transformers_of(block: UpBlock2D | CrossAttnUpBlock2D) -> list[Transformer2DModel | None]:
    """A spatial transformer, or none, for each residual layer of a decoder level."""
    return list(getattr(block, 'attentions', [None] * len(block.resnets)))


def decoder_transformers(unet: UNet2DConditionModel) -> list[Transformer2DModel | None]:
    """A spatial transformer, or none, for each decoder block, which is a residual layer with what follows it."""
    return [transformer for block in unet.up_blocks for transformer in transformers_of(block)]


def encoder_widths(unet: UNet2DConditionModel) -> list[int]:
    """Channels of what each input block of the U-Net gives."""
    widths = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        widths += [resnet.out_channels for resnet in block.resnets]
        widths += [layer.out_channels for layer in block.downsamplers or ()]
    return widths


def unread_outputs(unet: UNet2DConditionModel) -> list[int]:
    """Indices of the input blocks opposite to decoder blocks without attention, which read no branch output."""
    transformers = decoder_transformers(unet)
    return [len(transformers) - 1 - index for index, transformer in enumerate(transformers) if transformer is None]


def _build_unet(pretrained: str | None, settings: dict | None) -> UNet2DConditionModel:
    if (pretrained is None) == (settings is None):
        raise ValueError('`pretrained` and `unet`: exactly one must be given, got '
                         f'pretrained={pretrained!r}, unet={settings!r}. Name a diffusers folder or hub id in '
                         '`pretrained`, or give the settings of a new UNet2DConditionModel in `unet`.')
    if settings is not None:
        _check_kind(settings, '`unet`')
        return UNet2DConditionModel(**settings)
    assert pretrained is not None
    if Path(pretrained).is_dir() and not (Path(pretrained) / 'unet').is_dir():
        raise ValueError(f'`pretrained`: the folder {pretrained} has no `unet` in it; it must be in the diffusers '
                         'layout (unet/, vae/, scheduler/, text_encoder/, tokenizer/).')
    config = UNet2DConditionModel.load_config(pretrained, subfolder='unet')
    _check_kind(config, f'`pretrained`: the U-Net of {pretrained}')
    return UNet2DConditionModel.from_pretrained(pretrained, subfolder='unet')


def _check_kind(settings: Mapping[str, Any], what: str) -> None:
    problems = [f'{name}={settings[name]!r}' for name in _UNSUPPORTED if settings.get(name)]
    for name, known in _BLOCK_TYPES.items():
        given = settings.get(name, known[:1])
        given = [given] if isinstance(given, str) or given is None else given
        problems += [f'{name} with {kind!r} (must be {" or ".join(known)})' for kind in given if kind not in known]
    if problems:
        raise ValueError(f'{what} must be of the kind of Stable Diffusion 1.5\'s, got {", ".join(problems)}; use a '
                         'U-Net of Stable Diffusion 1, or one built of these blocks.')
