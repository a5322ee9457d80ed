"""Unified triple attention: image, text and mask tokens in one joint attention (TODSynth, arXiv 2512.16740, section 3).

Queries, keys and values of the three streams are concatenated in the order image, text, mask; each stream keeps its own
projections, q/k norm, output projection, gate and MLP.
"""
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor

from mmsynth.models.networks.control_block import (
    finish_image,
    finish_text,
    joint_attention,
    norm_image,
    norm_text,
    project,
    project_added,
)
from mmsynth.models.networks.mask_stream import MaskStream


class TripleAttention(MaskStream):
    """One block over three token streams.

    Args:
        dim: Width D.
        num_heads: Attention heads.
        head_dim: Width of a head.
        qk_norm: diffusers' name of the q/k normalisation, or None.
        pre_only: See :class:`MaskStream`. The release keeps these layers in its last block, unused.
        mask_mlp_from_image: The released rule: the mask MLP is modulated by the image stream's values.
    """

    def __init__(self,
                 dim: int,
                 *,
                 num_heads: int,
                 head_dim: int,
                 qk_norm: str | None,
                 pre_only: bool,
                 mask_mlp_from_image: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, head_dim=head_dim, qk_norm=qk_norm, pre_only=pre_only)
        self.mask_mlp_from_image = mask_mlp_from_image

    def forward(self, block: JointTransformerBlock, image: Tensor, text: Tensor, mask: Tensor,
                temb: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As in :class:`ControlBlock`."""
        # pre-attention
        image_in = norm_image(block, image, temb)
        text_in, text_mod = norm_text(block, text, temb)
        mask_in, mask_mod = self.norm_mask(mask, temb)
        if self.mask_mlp_from_image:
            mask_mod = image_in.modulation._replace(gate_msa=mask_mod.gate_msa)

        # joint attention
        image_out, text_out, mask_out = joint_attention(
            [project(block.attn, image_in.tokens), project_added(block.attn, text_in), project(self.attn, mask_in)])

        # post-attention
        image = finish_image(block, image, image_in, block.attn.to_out[0](image_out))
        text_out = text_out if text_mod is None else block.attn.to_add_out(text_out)
        return image, finish_text(block, text, text_out, text_mod), self.finish_mask(mask, mask_out, mask_mod)
