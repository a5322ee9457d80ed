"""Unified triple attention: image, text and mask tokens in one joint attention (TODSynth, arXiv 2512.16740, section 3).

A block is Stable Diffusion 3.5's own :class:`~diffusers.models.attention.JointTransformerBlock` for the image and text
streams plus a :class:`MaskStream`. Queries, keys and values of the three streams are concatenated in the order image,
text, mask; each stream keeps its own projections, q/k norm, output projection, gate and MLP.

Legend: B batch, N image tokens, T text tokens, M mask tokens, D width, E heads, d = D / E.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn


class Modulation(NamedTuple):
    """What a stream's adaptive norm leaves for later in the block; each (B, D)."""

    gate_msa: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class MaskStream(nn.Module):
    """The mask tokens' share of one triple-attention block.

    Args:
        dim: Width D.
        num_heads: Attention heads E.
        head_dim: Width of a head d.
        qk_norm: diffusers' name of the q/k normalisation, or None.
        pre_only: The last block's mask tokens take part in the attention and are dropped afterwards, so the stream
            needs no output projection and no MLP (as SD3 does for text). The release keeps them, unused.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, qk_norm: str | None, pre_only: bool) -> None:
        super().__init__()
        self.pre_only = pre_only
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


def triple_block(block: JointTransformerBlock,
                 stream: MaskStream,
                 image: Tensor,
                 text: Tensor,
                 mask: Tensor,
                 temb: Tensor,
                 *,
                 mask_mlp_from_image: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one block over the three token streams.

    Args:
        block: SD3's block: image and text streams, and dual attention where it has it.
        stream: The mask stream of the same depth.
        image: Image tokens (B, N, D).
        text: Text tokens (B, T, D).
        mask: Mask tokens (B, M, D).
        temb: Time and pooled-text embedding (B, D).
        mask_mlp_from_image: The released rule: the mask MLP is modulated by the image stream's values.

    Returns:
        The streams after the block; text is None after SD3's last block, mask None after a ``pre_only`` stream.
    """
    # pre-attention
    image_in, image_mod, dual_in, dual_gate = _image_norm(block, image, temb)
    text_in, text_mod = _text_norm(block, text, temb)
    mask_in, *mask_mod = stream.norm1(mask, emb=temb)
    mask_mod = Modulation(*mask_mod)

    # joint attention
    image_out, text_out, mask_out = _joint_attention(block.attn, stream.attn, image_in, text_in, mask_in)

    # post-attention
    image = image + image_mod.gate_msa[:, None] * block.attn.to_out[0](image_out)
    if dual_in is not None:
        image = image + dual_gate[:, None] * block.attn2(hidden_states=dual_in)
    image = image + _mlp(block.norm2, block.ff, image, image_mod)
    if text_mod is None:
        text = None
    else:
        text = text + text_mod.gate_msa[:, None] * block.attn.to_add_out(text_out)
        text = text + _mlp(block.norm2_context, block.ff_context, text, text_mod)
    if stream.pre_only:
        mask = None
    else:
        mask = mask + mask_mod.gate_msa[:, None] * stream.attn.to_out[0](mask_out)
        mask = mask + _mlp(stream.norm2, stream.ff, mask, image_mod if mask_mlp_from_image else mask_mod)
    return image, text, mask


def _image_norm(block: JointTransformerBlock, image: Tensor,
                temb: Tensor) -> tuple[Tensor, Modulation, Tensor | None, Tensor | None]:
    if block.use_dual_attention:
        normed, gate, shift, scale, gate_mlp, dual, dual_gate = block.norm1(image, emb=temb)
        return normed, Modulation(gate, shift, scale, gate_mlp), dual, dual_gate
    normed, *modulation = block.norm1(image, emb=temb)
    return normed, Modulation(*modulation), None, None


def _text_norm(block: JointTransformerBlock, text: Tensor, temb: Tensor) -> tuple[Tensor, Modulation | None]:
    if block.context_pre_only:
        return block.norm1_context(text, temb), None
    normed, *modulation = block.norm1_context(text, emb=temb)
    return normed, Modulation(*modulation)


def _mlp(norm: nn.Module, mlp: nn.Module, tokens: Tensor, modulation: Modulation) -> Tensor:
    normed = norm(tokens) * (1 + modulation.scale_mlp[:, None]) + modulation.shift_mlp[:, None]
    return modulation.gate_mlp[:, None] * mlp(normed)


def _joint_attention(joint: Attention, own: Attention, image: Tensor, text: Tensor,
                     mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    streams = (
        _project(joint.to_q, joint.to_k, joint.to_v, joint.norm_q, joint.norm_k, image, joint.heads),
        _project(joint.add_q_proj, joint.add_k_proj, joint.add_v_proj, joint.norm_added_q, joint.norm_added_k, text,
                 joint.heads),
        _project(own.to_q, own.to_k, own.to_v, own.norm_q, own.norm_k, mask, own.heads),
    )
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*streams))  # (B, E, N + T + M, d)
    tokens = F.scaled_dot_product_attention(query, key, value)
    tokens = tokens.transpose(1, 2).flatten(2).to(query.dtype)  # (B, N + T + M, D)
    return tokens.split([image.shape[1], text.shape[1], mask.shape[1]], dim=1)


def _project(to_q: nn.Module, to_k: nn.Module, to_v: nn.Module, norm_q: nn.Module | None, norm_k: nn.Module | None,
             tokens: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (  # (B, E, tokens, d)
        project(tokens).unflatten(2, (heads, -1)).transpose(1, 2) for project in (to_q, to_k, to_v))
    query = query if norm_q is None else norm_q(query)
    key = key if norm_k is None else norm_k(key)
    return query, key, value
