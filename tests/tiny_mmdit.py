"""A tiny MM-DiT with weights of its own everywhere, its inputs, and single blocks of SD3 to hold ours against."""
import torch
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from mmsynth.models.networks import CONTROLS, ControlBlock, MMDiT

TRUNK = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    caption_projection_dim=16,
    joint_attention_dim=12,
    pooled_projection_dim=10,
    pos_embed_max_size=8,
    dual_attention_layers=(0, ),
    qk_norm='rms_norm')
WIDTH = 16
BLOCKS = {
    'plain': dict(),
    'dual': dict(use_dual_attention=True),
    'last': dict(context_pre_only=True),
    'last_dual': dict(context_pre_only=True, use_dual_attention=True),
}


def randomise(module: nn.Module) -> nn.Module:
    """Give every weight a value of its own; a new trunk's output layer and modulation are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return module


def network(**settings) -> MMDiT:
    """A randomised network on :data:`TRUNK`."""
    return randomise(MMDiT(trunk=TRUNK, **settings))


def inputs(batch: int = 2, mask_channels: int = 4, rows: int = 8) -> list[Tensor]:
    """Latents, timestep, prompt embeddings, pooled ones and mask latents."""
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, 4, rows, 8), (batch, 5, 12), (batch, 10), (batch, mask_channels, rows, 8)
    latents, prompt, pooled, mask = (torch.randn(shape, generator=generator) for shape in shapes)
    return [latents, torch.linspace(900, 100, batch), prompt, pooled, mask]


def build_block(control: str, kind: str = 'plain', qk_norm: str | None = 'rms_norm',
                pre_only: bool = False) -> tuple[JointTransformerBlock, ControlBlock]:
    """A randomised block of SD3 of one of the :data:`BLOCKS`, and a new one of the scheme's."""
    torch.manual_seed(0)
    block = JointTransformerBlock(WIDTH, 2, 8, qk_norm=qk_norm, **BLOCKS[kind])
    return randomise(block), CONTROLS[control](WIDTH, num_heads=2, head_dim=8, qk_norm=qk_norm, pre_only=pre_only)


def tokens(batch: int = 2) -> list[Tensor]:
    """Image (B, 6, D), text (B, 3, D) and mask tokens (B, 4, D), and a time embedding (B, D)."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator)
            for shape in ((batch, 6, WIDTH), (batch, 3, WIDTH), (batch, 4, WIDTH), (batch, WIDTH))]
