"""The MM-DiT of TODSynth: Stable Diffusion 3.5's transformer, steered by a mask (arXiv 2512.16740, section 3).

The trunk is diffusers' own ``SD3Transformer2DModel``; without a mask the network is that model. With a mask every block
runs under a control scheme: unified triple attention, or one of the two that the paper compares it with.

Legend: B batch, C latent channels, Cm mask channels, h w latent cells, D width.
"""
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmsynth.models.networks.control_block import ControlBlock, ControlledBlock
from mmsynth.models.networks.mask_adapter import MaskAdapter
from mmsynth.models.networks.siamese_attention import SiameseAttention
from mmsynth.models.networks.triple_attention import TripleAttention
from mmsynth.registry import MODELS

CONTROLS: dict[str, Callable[..., ControlBlock]] = dict(
    triple=TripleAttention, siamese=SiameseAttention, adapter=MaskAdapter)
_TEXT_PARTS = ('context_embedder', 'time_text_embed', 'norm1_context', 'ff_context', 'add_q_proj', 'add_k_proj',
               'add_v_proj', 'norm_added_q', 'norm_added_k', 'to_add_out')


@MODELS.register_module()
class MMDiT(nn.Module):
    """SD3.5's transformer with a mask input.

    Args:
        pretrained: A folder or hub id in the diffusers layout whose ``transformer`` the trunk is loaded from.
        trunk: Settings of an ``SD3Transformer2DModel`` built from scratch. Exactly one of the two is given.
        mask_channels: Channels Cm of the mask input; by default those of the latent.
        control: How the mask steers the image: 'triple', one attention over image, text and mask tokens; 'siamese', a
            second attention over image and mask beside SD3's own; 'adapter', a cross-attention from image to mask.
            All start from the trunk's image stream; a new 'siamese' or 'adapter' changes nothing until it is trained.
        legacy: Keep the released network: the mask MLP modulated by the image stream, a random start of the mask
            stream, and the last block's unused mask layers, so that released weights load. Only with 'triple'.
        gradient_checkpointing: Recompute the blocks in the backward pass instead of storing their activations.

    Attributes:
        sharded_units: The classes whose modules hold most weights, and are called one after the other.

    Raises:
        ValueError: If not exactly one of ``pretrained`` and ``trunk`` is given, ``control`` is unknown, or ``legacy``
            is asked for with another scheme than 'triple'.
    """

    sharded_units: ClassVar[tuple[type[nn.Module], ...]] = (ControlledBlock, ControlBlock)

    def __init__(self,
                 pretrained: str | None = None,
                 trunk: dict | None = None,
                 mask_channels: int | None = None,
                 control: str = 'triple',
                 legacy: bool = False,
                 gradient_checkpointing: bool = False) -> None:
        _check_control(control, legacy)
        super().__init__()
        self.trunk = _build_trunk(pretrained, trunk)
        for block in self.trunk.transformer_blocks:
            block.__class__ = ControlledBlock
        self.control = control
        self.legacy = legacy
        self.gradient_checkpointing = gradient_checkpointing
        config = self.trunk.config
        self.mask_channels = config.in_channels if mask_channels is None else mask_channels
        self.mask_embed = PatchEmbed(
            height=config.sample_size,
            width=config.sample_size,
            patch_size=config.patch_size,
            in_channels=self.mask_channels,
            embed_dim=self.trunk.inner_dim,
            pos_embed_max_size=config.pos_embed_max_size)
        self.mask_blocks: Any = _build_blocks(self.trunk, control, legacy)
        if not legacy:
            self._copy_image_stream()

    @property
    def latent_channels(self) -> int:
        return self.trunk.config.in_channels

    @property
    def patch_size(self) -> int:
        return self.trunk.config.patch_size

    def branch_parameters(self, branch: str) -> dict[str, nn.Parameter]:
        """The named parameters of one branch: 'image', 'mask' or 'text'.

        'text' includes the time and pooled-text embedder, 'image' the patch embedding and the output layers, 'mask' all
        that a control scheme adds to SD3, the layers by which image tokens look at the mask among it.
        """
        return {name: value for name, value in self.named_parameters() if _branch_of(name) == branch}

    def forward(self,
                latents: Tensor,
                timestep: Tensor,
                prompt_embeds: Tensor,
                pooled_prompt_embeds: Tensor,
                mask_latents: Tensor | None = None) -> Tensor:
        """Predict the velocity ``eps - z0``.

        Args:
            latents: Noisy latents (B, C, h, w).
            timestep: (B,), 1000 * sigma, in [0, 1000].
            prompt_embeds: (B, T, joint_attention_dim).
            pooled_prompt_embeds: (B, pooled_projection_dim).
            mask_latents: The encoded mask (B, Cm, h, w); None runs plain SD3.

        Returns:
            Velocity (B, C, h, w).

        Raises:
            ValueError: If h or w is no multiple of the patch size, or too large for the position table.
        """
        trunk, size = self.trunk, latents.shape[-2:]
        if size[0] % self.patch_size or size[1] % self.patch_size:
            raise ValueError(f'latents of {size[0]}x{size[1]} cells: both sides must be multiples of the patch size '
                             f'{self.patch_size}; crop or resize the images so in the pipeline of the dataset.')
        table = trunk.config.pos_embed_max_size  # None: positions of any size
        if table is not None and max(size) > table * self.patch_size:
            limit = table * self.patch_size
            raise ValueError(f'latents of {size[0]}x{size[1]} cells are larger than the position table of the network, '
                             f'`pos_embed_max_size` {table}, which allows {limit}x{limit}; cut the masks into smaller '
                             'ones, or resize them in the pipeline of the dataset.')
        if mask_latents is None:
            return trunk(latents, prompt_embeds, pooled_prompt_embeds, timestep, return_dict=False)[0]
        image = trunk.pos_embed(latents)  # (B, N, D)
        text = trunk.context_embedder(prompt_embeds)  # (B, T, D)
        mask = self.mask_embed(mask_latents)  # (B, M, D), M = N
        temb = trunk.time_text_embed(timestep, pooled_prompt_embeds)  # (B, D)
        for block, control in zip(trunk.transformer_blocks, self.mask_blocks):
            image, text, mask = self._run_block(control, block, image, text, mask, temb)
        image = trunk.proj_out(trunk.norm_out(image, temb))  # (B, N, p * p * C)
        return self._unpatchify(image, size)

    def _run_block(self, control: ControlBlock, block: nn.Module, image: Tensor, text: Tensor, mask: Tensor,
                   temb: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, image, text, temb, control=control, mask=mask, use_reentrant=False)
        return block(image, text, temb, control=control, mask=mask)

    def _unpatchify(self, tokens: Tensor, size: torch.Size) -> Tensor:
        patch = self.patch_size
        rows, columns = size[0] // patch, size[1] // patch
        cells = tokens.reshape(len(tokens), rows, columns, patch, patch, self.trunk.out_channels)
        return torch.einsum('bhwpqc->bchpwq', cells).reshape(len(tokens), self.trunk.out_channels, *size)

    def _copy_image_stream(self) -> None:
        for block, control in zip(self.trunk.transformer_blocks, self.mask_blocks):
            control.copy_image_stream(block)
        own, trunk = self.mask_embed.state_dict(), self.trunk.pos_embed.state_dict()
        self.mask_embed.load_state_dict({  # positions always; the projection where the channels agree
            name: trunk[name] if trunk[name].shape == value.shape else value for name, value in own.items()})


def _branch_of(name: str) -> str:
    if name.startswith(('mask_embed.', 'mask_blocks.')):
        return 'mask'
    return 'text' if any(part in _TEXT_PARTS for part in name.split('.')) else 'image'


def _check_control(control: str, legacy: bool) -> None:
    if control not in CONTROLS:
        raise ValueError(f'`control` must be one of {", ".join(CONTROLS)}, got {control!r}.')
    if legacy and control != 'triple':
        raise ValueError(f"`legacy=True` keeps the released network, which has control='triple', got {control!r}; "
                         'leave out one of the two.')


def _build_blocks(trunk: SD3Transformer2DModel, control: str, legacy: bool) -> nn.ModuleList:
    config = trunk.config
    last = config.num_layers - 1
    build = partial(TripleAttention, mask_mlp_from_image=True) if legacy else CONTROLS[control]
    return nn.ModuleList(
        build(
            trunk.inner_dim,
            num_heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            qk_norm=config.qk_norm,
            pre_only=index == last and not legacy) for index in range(config.num_layers))


def _build_trunk(pretrained: str | None, trunk: dict | None) -> SD3Transformer2DModel:
    if (pretrained is None) == (trunk is None):
        raise ValueError('`pretrained` and `trunk`: exactly one must be given, got '
                         f'pretrained={pretrained!r}, trunk={trunk!r}. Name a diffusers folder or hub id in '
                         '`pretrained`, or give the settings of a new SD3Transformer2DModel in `trunk`.')
    if pretrained is not None:
        if Path(pretrained).is_dir() and not (Path(pretrained) / 'transformer').is_dir():
            raise ValueError(f'`pretrained`: the folder {pretrained} has no `transformer` in it; it must be in the '
                             'diffusers layout (transformer/, vae/, scheduler/, text_encoder*/, tokenizer*/).')
        return SD3Transformer2DModel.from_pretrained(pretrained, subfolder='transformer')
    assert trunk is not None
    model = SD3Transformer2DModel(**trunk)
    _zero_modulation(model)
    return model


@torch.no_grad()
def _zero_modulation(trunk: SD3Transformer2DModel) -> None:
    """Start every block as the identity (adaLN-zero, DiT, arXiv 2212.09748), for training from scratch."""
    for block in trunk.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    for layer in (trunk.norm_out.linear, trunk.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
