"""Mask adapter: in every block the image tokens also look at the mask tokens, by a cross-attention of their own.

One of the control schemes that TODSynth compares (arXiv 2512.16740), decoupled as in IP-Adapter (arXiv 2308.06721):

    image += gate * to_out(attention(image, text)) + to_out'(cross_attention(image, mask))

The mask tokens are those of the embedding at every depth; no block changes them. It is the smallest of the schemes.

Legend: B batch, N image tokens, M mask tokens, D width.
"""
import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor

from mmsynth.models.networks.control_block import (
    ControlBlock,
    copy_projections,
    finish_image,
    finish_text,
    norm_image,
    norm_text,
    zero_output,
)


class MaskAdapter(ControlBlock):
    """One block with a cross-attention from image to mask tokens; its output projection starts at zero.

    Args:
        dim: Width D.
        num_heads: Attention heads.
        head_dim: Width of a head.
        qk_norm: diffusers' name of the q/k normalisation, or None.
        pre_only: Return None for the mask tokens; there is no layer to leave out.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, qk_norm: str | None, pre_only: bool) -> None:
        super().__init__(pre_only=pre_only)
        self.norm1 = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(
            query_dim=dim,
            cross_attention_dim=dim,
            dim_head=head_dim,
            heads=num_heads,
            out_dim=dim,
            bias=True,
            qk_norm=qk_norm,
            eps=1e-6)
        zero_output(self.attn)

    @torch.no_grad()
    def copy_image_stream(self, block: JointTransformerBlock) -> None:
        """Read mask tokens as the image stream reads its own: its norm and its projections, without the output."""
        width = self.norm1.linear.in_features
        for name, own in self.norm1.linear.named_parameters():
            shift, scale = block.norm1.linear.get_parameter(name).split(width)[:2]
            own.copy_(torch.cat([scale, shift]))  # diffusers' two norms chunk them in opposite orders
        copy_projections(self.attn, block.attn)

    def forward(self, block: JointTransformerBlock, image: Tensor, text: Tensor, mask: Tensor,
                temb: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As in :class:`ControlBlock`; the mask tokens come out as they came in."""
        # pre-attention
        image_in = norm_image(block, image, temb)
        text_in, text_mod = norm_text(block, text, temb)
        mask_in = self.norm1(mask, temb)

        # joint attention, and the look at the mask
        image_out, text_out = block.attn(image_in.tokens, encoder_hidden_states=text_in)
        seen = self.attn(image_in.tokens, encoder_hidden_states=mask_in)

        # post-attention
        image = finish_image(block, image, image_in, image_out, control=seen)
        return image, finish_text(block, text, text_out, text_mod), None if self.pre_only else mask
