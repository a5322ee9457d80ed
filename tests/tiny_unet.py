"""A tiny Stable Diffusion U-Net with the parts of the real one, and inputs for a ControlledUNet on it."""
import torch
from torch import Tensor

from mmsynth.models.networks import ControlledUNet

CHANNELS, TEXT_DIM, FACTOR = 4, 12, 8
UNET = dict(
    sample_size=8,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    layers_per_block=1,
    block_out_channels=(8, 16, 16),
    down_block_types=('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'),
    cross_attention_dim=TEXT_DIM,
    attention_head_dim=2,  # the number of heads, as in Stable Diffusion 1.5
    norm_num_groups=4)
UNREAD = [4, 5]  # of the input blocks 0 to 5, those opposite to the coarsest decoder level


def network(seed: int = 0, **settings) -> ControlledUNet:
    torch.manual_seed(seed)
    return ControlledUNet(unet=UNET, **settings)


def randomize(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Give everything but norms random weights, so that every input makes a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'norm' not in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(batch: int = 2, rows: int = 8, columns: int = 8, seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and prompt embeddings."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, CHANNELS, rows, columns, generator=generator)
    return latents, torch.tensor([981., 41.])[:batch], torch.randn(batch, 5, TEXT_DIM, generator=generator)


def controls(batch: int = 2, rows: int = 8, columns: int = 8, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A control image of :data:`FACTOR` pixels per cell, and a reference's latents."""
    generator = torch.Generator().manual_seed(seed)
    control = torch.rand(batch, 3, rows * FACTOR, columns * FACTOR, generator=generator)
    return control, torch.randn(batch, CHANNELS, rows, columns, generator=generator)


def predict(model: ControlledUNet, plain: tuple[Tensor, ...] | None = None,
            control: tuple[Tensor, ...] | None = None) -> Tensor:
    """Noise for :func:`inputs` and :func:`controls`."""
    mask, reference = controls() if control is None else control
    return model(*(inputs() if plain is None else plain), model.encode_mask(mask), model.encode_reference(reference))
