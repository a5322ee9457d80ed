"""All-in attention: how a U-Net's tokens look at the reference and at the mask (TISynth, 10.1016/j.inffus.2025.103839).

Before each of its own transformer blocks, with r and m the outputs of the reference branch and of the mask branch::

    x += A00(LN(x), r)
    x += A01(LN(x), m)

Legend: B batch, N tokens of the U-Net, M tokens of a branch output, D width, Cb channels of a branch output,
h w cells of the U-Net's level, T text tokens.
"""
from collections.abc import Iterable, Sequence

import torch
from diffusers import Transformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class AllInAttention(nn.Module):
    """The two attentions before one transformer block, with their norms.

    Args:
        block: The block; fixes width and heads.
        control_dim: Channels Cb of the branch outputs that are looked at.
        zero_start: Start without any effect: the output projections are zero. The release starts at random.
        mask_locality: Look at the mask near each token's own place first: scores fall by ``s d²`` over a distance of d
            cells, with a strength s that each head learns, 1 at the start. Neither tokens nor mask carry positions; a
            trained U-Net knows them from its padding, but a new one would first have to learn where it looks.
    """

    def __init__(self, block: BasicTransformerBlock, control_dim: int, *, zero_start: bool,
                 mask_locality: bool = False) -> None:
        super().__init__()
        self.reference_norm = nn.LayerNorm(block.dim)
        self.reference_attn = _attention(block, control_dim)
        self.mask_norm = nn.LayerNorm(block.dim)
        self.mask_attn = _attention(block, control_dim)
        self.mask_locality = nn.Parameter(torch.ones(block.num_attention_heads)) if mask_locality else None
        if zero_start:
            for attention in (self.reference_attn, self.mask_attn):
                nn.init.zeros_(attention.to_out[0].weight)
                nn.init.zeros_(attention.to_out[0].bias)

    def forward(self, tokens: Tensor, reference: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Let tokens (B, N, D) look at a reference's and then at a mask's tokens, both (B, M, Cb), of a map (h, w)."""
        tokens = tokens + self.reference_attn(self.reference_norm(tokens), encoder_hidden_states=reference)
        scores = None if self.mask_locality is None else self._locality(size).repeat(len(tokens), 1, 1)
        return tokens + self.mask_attn(self.mask_norm(tokens), encoder_hidden_states=mask, attention_mask=scores)

    def _locality(self, size: Sequence[int]) -> Tensor:
        """What is added to each head's scores (heads, h * w, h * w)."""
        strength = self.mask_locality
        assert strength is not None
        axes = [torch.arange(length, device=strength.device) for length in size]
        places = torch.cartesian_prod(*axes).to(strength.dtype)
        return -strength[:, None, None] * (places[:, None] - places).square().sum(-1)


def run_transformer(transformer: Transformer2DModel, fusions: Iterable[AllInAttention], features: Tensor, text: Tensor,
                    reference: Tensor, mask: Tensor) -> Tensor:
    """Run a spatial transformer, each of its blocks after an all-in attention.

    Args:
        transformer: Of Stable Diffusion's U-Net.
        fusions: One for each of its blocks.
        features: (B, C, h, w).
        text: Text tokens (B, T, cross_attention_dim).
        reference: Output of the reference branch (B, Cb, h, w).
        mask: Output of the mask branch (B, Cb, h, w).

    Returns:
        Features (B, C, h, w).
    """
    reference, mask, size = to_tokens(reference), to_tokens(mask), features.shape[-2:]
    linear = transformer.use_linear_projection  # Stable Diffusion 1.5 projects the map, 2 the tokens
    x = transformer.norm(features)
    tokens = transformer.proj_in(to_tokens(x)) if linear else to_tokens(transformer.proj_in(x))  # (B, N, D)
    for block, fusion in zip(transformer.transformer_blocks, fusions, strict=True):
        tokens = block(fusion(tokens, reference, mask, size), encoder_hidden_states=text)
    x = to_map(transformer.proj_out(tokens), size) if linear else transformer.proj_out(to_map(tokens, size))
    return features + x


def to_tokens(features: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h * w, C)."""
    return features.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, h * w, C) → (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def _attention(block: BasicTransformerBlock, control_dim: int) -> Attention:
    return Attention(
        query_dim=block.dim,
        cross_attention_dim=control_dim,
        heads=block.num_attention_heads,
        dim_head=block.attention_head_dim,
        bias=False)
