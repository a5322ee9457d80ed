"""A third token stream for the mask, with the layers that SD3 gives to each of its own two.

Legend: B batch, M mask tokens, D width, E heads, d = D / E.
"""
import torch
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn

from mmsynth.models.networks.control_block import ControlBlock, Modulation, modulated_mlp


class MaskStream(ControlBlock):
    """The mask tokens' share of one block: norm, projections, output projection, gates, MLP.

    What the tokens attend to is the scheme's: see :class:`~mmsynth.models.networks.TripleAttention` and
    :class:`~mmsynth.models.networks.SiameseAttention`.

    Args:
        dim: Width D.
        num_heads: Attention heads E.
        head_dim: Width of a head d.
        qk_norm: diffusers' name of the q/k normalisation, or None.
        pre_only: The last block's mask tokens take part in the attention and are dropped afterwards, so the stream
            needs no output projection and no MLP. Its queries stay, as text's do in SD3: they learn nothing.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, qk_norm: str | None, pre_only: bool) -> None:
        super().__init__(pre_only=pre_only)
        self.norm1 = AdaLayerNormZero(dim)
        self.attn = Attention(
            query_dim=dim, dim_head=head_dim, heads=num_heads, out_dim=dim, bias=True, qk_norm=qk_norm, eps=1e-6)
        if pre_only:
            self.attn.to_out = None
        else:
            self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.ff = FeedForward(dim=dim, dim_out=dim, activation_fn='gelu-approximate')

    @torch.no_grad()
    def copy_image_stream(self, block: JointTransformerBlock) -> None:
        """Start as a copy of the image stream of ``block`` (the release starts from random weights)."""
        rows = self.norm1.linear.weight.shape[0]  # SD3.5's dual-attention norm has 9 D rows; its first 6 D are these
        self.norm1.linear.weight.copy_(block.norm1.linear.weight[:rows])
        self.norm1.linear.bias.copy_(block.norm1.linear.bias[:rows])
        self.attn.load_state_dict({key: block.attn.state_dict()[key] for key in self.attn.state_dict()})
        if not self.pre_only:
            self.ff.load_state_dict(block.ff.state_dict())

    def norm_mask(self, mask: Tensor, temb: Tensor) -> tuple[Tensor, Modulation]:
        """The mask tokens (B, M, D) as the attention reads them, and their modulation."""
        tokens, *modulation = self.norm1(mask, emb=temb)
        return tokens, Modulation(*modulation)

    def finish_mask(self, mask: Tensor, attended: Tensor, modulation: Modulation) -> Tensor | None:
        """The stream after an attention whose result, before the output projection, is ``attended`` (B, M, D)."""
        if self.pre_only:
            return None
        mask = mask + modulation.gate_msa[:, None] * self.attn.to_out[0](attended)
        return mask + modulated_mlp(self.norm2, self.ff, mask, modulation)
