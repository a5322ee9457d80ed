"""What the control schemes share: their interface, and the parts of SD3's block that they run around their own.

A control scheme decides how the mask steers the image: unified triple attention, siamese attention or a mask adapter
(TODSynth, arXiv 2512.16740, compares the three). Each is one module per depth that runs Stable Diffusion 3.5's own
:class:`~diffusers.models.attention.JointTransformerBlock` of that depth together with its own layers.

Legend: B batch, N image tokens, T text tokens, M mask tokens, D width, E heads, d = D / E.
"""
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

Heads = tuple[Tensor, Tensor, Tensor]  # query, key, value of one stream, each (B, E, tokens, d)


class ControlBlock(nn.Module, ABC):
    """One depth of a control scheme: SD3's block, and how the mask enters it.

    Args:
        pre_only: Nobody reads the mask tokens after this depth: it returns None for them and has no layers that would
            only serve them (as SD3 does for text in its last block).
    """

    def __init__(self, *, pre_only: bool) -> None:
        super().__init__()
        self.pre_only = pre_only

    @abstractmethod
    def copy_image_stream(self, block: JointTransformerBlock) -> None:
        """Start the layers that have a counterpart in the image stream of ``block`` as a copy of it."""

    @abstractmethod
    def forward(self, block: JointTransformerBlock, image: Tensor, text: Tensor, mask: Tensor,
                temb: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run one block.

        Args:
            block: SD3's block: image and text streams, and dual attention where it has it.
            image: Image tokens (B, N, D).
            text: Text tokens (B, T, D).
            mask: Mask tokens (B, M, D).
            temb: Time and pooled-text embedding (B, D).

        Returns:
            The streams after the block; text is None after SD3's last block, mask None after a ``pre_only`` one.
        """


class ControlledBlock(JointTransformerBlock):
    """SD3's block as it runs under a control scheme; without one it is SD3's own.

    The scheme is called from within the block's ``forward``. So both are called as modules, and whatever gathers a
    module's weights for the time of its call (FSDP, ZeRO) has them there when the scheme reads the block's layers.
    """

    def forward(self,
                hidden_states: Tensor,
                encoder_hidden_states: Tensor,
                temb: Tensor,
                joint_attention_kwargs: dict | None = None,
                *,
                control: ControlBlock | None = None,
                mask: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """As in :class:`ControlBlock` with a scheme: image, text, mask. Without: diffusers' text, image."""
        if control is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)
        return control(self, hidden_states, encoder_hidden_states, mask, temb)


class Modulation(NamedTuple):
    """What a stream's adaptive norm leaves for later in the block; each (B, D)."""

    gate_msa: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class NormedImage(NamedTuple):
    """The image tokens as the attentions read them, (B, N, D); ``dual`` only where SD3.5 has dual attention."""

    tokens: Tensor
    modulation: Modulation
    dual: Tensor | None = None
    dual_gate: Tensor | None = None


def norm_image(block: JointTransformerBlock, image: Tensor, temb: Tensor) -> NormedImage:
    """SD3's adaptive norm of the image stream."""
    if block.use_dual_attention:
        tokens, gate, shift, scale, gate_mlp, dual, dual_gate = block.norm1(image, emb=temb)
        return NormedImage(tokens, Modulation(gate, shift, scale, gate_mlp), dual, dual_gate)
    tokens, *modulation = block.norm1(image, emb=temb)
    return NormedImage(tokens, Modulation(*modulation))


def norm_text(block: JointTransformerBlock, text: Tensor, temb: Tensor) -> tuple[Tensor, Modulation | None]:
    """SD3's adaptive norm of the text stream; no modulation in the last block, where the stream ends."""
    if block.context_pre_only:
        return block.norm1_context(text, temb), None
    tokens, *modulation = block.norm1_context(text, emb=temb)
    return tokens, Modulation(*modulation)


def finish_image(block: JointTransformerBlock,
                 image: Tensor,
                 normed: NormedImage,
                 attended: Tensor,
                 *,
                 control: Tensor | None = None) -> Tensor:
    """The image stream after the joint attention: gate, dual attention, what the scheme adds, MLP.

    Args:
        block: SD3's block.
        image: Image tokens before the block (B, N, D).
        normed: Of :func:`norm_image`.
        attended: The joint attention's result after the output projection (B, N, D).
        control: What a scheme beside the joint attention adds to the image tokens (B, N, D).
    """
    image = image + normed.modulation.gate_msa[:, None] * attended
    if normed.dual is not None and normed.dual_gate is not None:
        image = image + normed.dual_gate[:, None] * block.attn2(hidden_states=normed.dual)
    if control is not None:
        image = image + control
    return image + modulated_mlp(block.norm2, block.ff, image, normed.modulation)


def finish_text(block: JointTransformerBlock, text: Tensor, attended: Tensor,
                modulation: Modulation | None) -> Tensor | None:
    """The text stream after the joint attention, whose projected result is ``attended``; None where it ends."""
    if modulation is None:
        return None
    text = text + modulation.gate_msa[:, None] * attended
    return text + modulated_mlp(block.norm2_context, block.ff_context, text, modulation)


def modulated_mlp(norm: nn.Module, mlp: nn.Module, tokens: Tensor, modulation: Modulation) -> Tensor:
    """``gate * mlp(norm(tokens) * (1 + scale) + shift)``, what a stream's MLP adds to it."""
    normed = norm(tokens) * (1 + modulation.scale_mlp[:, None]) + modulation.shift_mlp[:, None]
    return modulation.gate_mlp[:, None] * mlp(normed)


def project(attn: Attention, tokens: Tensor) -> Heads:
    """Queries, keys and values of tokens (B, tokens, D) by a stream's own projections and norms."""
    return _heads(attn.heads, tokens, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))


def project_added(attn: Attention, tokens: Tensor) -> Heads:
    """The same for the second stream of SD3's joint attention: text."""
    projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
    return _heads(attn.heads, tokens, projections, (attn.norm_added_q, attn.norm_added_k))


def joint_attention(streams: Sequence[Heads]) -> tuple[Tensor, ...]:
    """One attention over the tokens of all streams; the result of each (B, tokens, D), before output projections."""
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*streams))  # (B, E, all tokens, d)
    tokens = _attend(query, key, value)
    tokens = tokens.transpose(1, 2).flatten(2).to(query.dtype)  # (B, all tokens, D)
    return tokens.split([stream[0].shape[2] for stream in streams], dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.device.type == 'cpu' and query.requires_grad:
        # the fused attention's backward pass takes longer in bfloat16 there
        with torch.autocast('cpu', enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    return F.scaled_dot_product_attention(query, key, value)


@torch.no_grad()
def copy_projections(attn: Attention, source: Attention) -> None:
    """Copy the projections and norms of queries, keys and values; the output projection stays as it is."""
    own, other = attn.state_dict(), source.state_dict()
    attn.load_state_dict({key: value if key.startswith('to_out.') else other[key] for key, value in own.items()})


@torch.no_grad()
def zero_output(attn: Attention) -> None:
    """Start an attention by contributing nothing; its output projection gets gradients all the same."""
    nn.init.zeros_(attn.to_out[0].weight)
    nn.init.zeros_(attn.to_out[0].bias)


def _heads(heads: int, tokens: Tensor, projections: Sequence[nn.Module], norms: Sequence[nn.Module | None]) -> Heads:
    query, key, value = (  # (B, E, tokens, d)
        layer(tokens).unflatten(2, (heads, -1)).transpose(1, 2) for layer in projections)
    norm_q, norm_k = norms
    query = query if norm_q is None else norm_q(query)
    key = key if norm_k is None else norm_k(key)
    return query, key, value
