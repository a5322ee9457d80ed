"""Siamese attention: beside SD3's joint attention of image and text, a second tower joins image and mask.

One of the control schemes that TODSynth compares (arXiv 2512.16740); the idea is that of SiamLayout (CreatiLayout,
arXiv 2412.03859). Text and mask never meet in an attention, so neither takes attention from the other; against triple
attention that costs a second set of image projections.

    image += gate * to_out(attention(image, text)) + gate' * to_out'(attention'(image, mask))

Legend: B batch, N image tokens, M mask tokens, D width.
"""
import torch
import torch.nn.functional as F
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from mmsynth.models.networks.control_block import (
    copy_projections,
    finish_image,
    finish_text,
    joint_attention,
    norm_image,
    norm_text,
    project,
    zero_output,
)
from mmsynth.models.networks.mask_stream import MaskStream


class SiameseAttention(MaskStream):
    """One block of two towers: SD3's own of image and text, and one of image and mask.

    The second tower's output projection to the image starts at zero: until it is trained the image is SD3's. Its gate,
    a linear function of the time embedding, starts at one: zero as well, and neither of the two would get a gradient.

    Args:
        dim: Width D.
        num_heads: Attention heads.
        head_dim: Width of a head.
        qk_norm: diffusers' name of the q/k normalisation, or None.
        pre_only: See :class:`MaskStream`.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, qk_norm: str | None, pre_only: bool) -> None:
        super().__init__(dim, num_heads=num_heads, head_dim=head_dim, qk_norm=qk_norm, pre_only=pre_only)
        self.image_attn = Attention(
            query_dim=dim, dim_head=head_dim, heads=num_heads, out_dim=dim, bias=True, qk_norm=qk_norm, eps=1e-6)
        zero_output(self.image_attn)
        self.image_gate = nn.Linear(dim, dim)
        nn.init.zeros_(self.image_gate.weight)
        nn.init.ones_(self.image_gate.bias)

    @torch.no_grad()
    def copy_image_stream(self, block: JointTransformerBlock) -> None:
        """Start both of the tower's streams as copies of the image stream; its output to the image stays zero."""
        super().copy_image_stream(block)
        copy_projections(self.image_attn, block.attn)

    def forward(self, block: JointTransformerBlock, image: Tensor, text: Tensor, mask: Tensor,
                temb: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As in :class:`ControlBlock`."""
        # pre-attention
        image_in = norm_image(block, image, temb)
        text_in, text_mod = norm_text(block, text, temb)
        mask_in, mask_mod = self.norm_mask(mask, temb)
        gate = self.image_gate(F.silu(temb))[:, None]  # (B, 1, D)

        # the two towers
        image_out, text_out = block.attn(image_in.tokens, encoder_hidden_states=text_in)
        seen, mask_out = joint_attention([project(self.image_attn, image_in.tokens), project(self.attn, mask_in)])

        # post-attention
        image = finish_image(block, image, image_in, image_out, control=gate * self.image_attn.to_out[0](seen))
        return image, finish_text(block, text, text_out, text_mod), self.finish_mask(mask, mask_out, mask_mod)
