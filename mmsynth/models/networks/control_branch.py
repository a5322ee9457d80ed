"""A control branch: a copy of the U-Net's encoder that reads a hint (ControlNet, arXiv 2302.05543).

The network is diffusers' ``ControlNetModel``. Its hint encoder stands beside it here, because a hint is the same at
every step of a run and is encoded once.

Legend: B batch, C latent channels, Ch hint channels, D width of the first level, h w latent cells, T text tokens.
"""
import math
from collections.abc import Collection, Sequence

from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor, nn

FACTORS = (1, 2, 4, 8)
EMBEDDING_CHANNELS = (16, 32, 96, 256)  # of ControlNet's hint encoder
_SILU_GAIN = 1.7  # SiLU weakens standard normal numbers by 1.68, small ones by 2
COPIED_PARTS = ('conv_in', 'time_embedding', 'down_blocks', 'mid_block')  # what a branch has from the U-Net


class ControlBranch(nn.Module):
    """One branch: hint encoder, encoder copy, and a 1x1 convolution behind every output.

    Args:
        unet: The U-Net whose encoder and middle block the branch starts as a copy of.
        hint_channels: Channels Ch of the hint.
        factor: Cells of the hint per latent cell and side, one of 1, 2, 4, 8: the hint encoder has so many strides.
        conditioning_embedding_out_channels: Channels of the hint encoder's layers before D, as diffusers calls them;
            wide ones cost a small network much of its time.
        unread: Indices of the outputs that nobody reads; they have no convolution.
        zero_start: Start with hint and outputs of zero, as in ControlNet and the release. Otherwise the outputs start
            as the encoder's own features with the hint added, and what reads them must start at zero: were both zero,
            neither would learn.

    Raises:
        ValueError: If the factor is none of these, or the channels are not four positive numbers.
    """

    def __init__(self, unet: UNet2DConditionModel, *, hint_channels: int, factor: int,
                 conditioning_embedding_out_channels: Sequence[int] = EMBEDDING_CHANNELS,
                 unread: Collection[int] = (), zero_start: bool = False) -> None:
        channels = tuple(conditioning_embedding_out_channels)
        if len(channels) != len(EMBEDDING_CHANNELS) or not all(isinstance(c, int) and c > 0 for c in channels):
            raise ValueError('`conditioning_embedding_out_channels` must be four positive numbers of channels, such as '
                             f'{EMBEDDING_CHANNELS}, got {conditioning_embedding_out_channels!r}.')
        super().__init__()
        network = ControlNetModel.from_unet(
            unet, conditioning_channels=hint_channels, conditioning_embedding_out_channels=channels)
        self.hint_encoder = network.controlnet_cond_embedding
        _set_factor(self.hint_encoder, factor)
        network.controlnet_cond_embedding = nn.Identity()
        for index in unread:
            network.controlnet_down_blocks[index] = nn.Identity()
        self.network = network
        if not zero_start:
            for convolution in self._output_convolutions():
                nn.init.dirac_(convolution.weight)
            _keep_variance(self.hint_encoder)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, hint: Tensor) -> list[Tensor]:
        """Run the branch.

        Args:
            latents: Noisy latents (B, C, h, w).
            timestep: (B,), in [0, 1000).
            text: Text tokens (B, T, cross_attention_dim).
            hint: What ``hint_encoder`` made of the hint, (B, D, h, w).

        Returns:
            One output for every input block of the U-Net, then that of the middle block; each has the shape of what
            the U-Net has there.
        """
        outputs, middle = self.network(
            latents, timestep, encoder_hidden_states=text, controlnet_cond=hint, return_dict=False)
        return [*outputs, middle]

    def _output_convolutions(self) -> list[nn.Conv2d]:
        layers = [*self.network.controlnet_down_blocks, self.network.controlnet_mid_block]
        return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def _keep_variance(hint_encoder: nn.Module) -> None:
    """Start a hint encoder so that a hint comes out about as strong as it goes in.

    With PyTorch's own start each layer weakens it to about a third: eight layers on, thousands of iterations pass
    before a network notices its hint.
    """
    for layer in hint_encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=_SILU_GAIN / math.sqrt(layer.weight[0].numel()))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _set_factor(hint_encoder: ControlNetConditioningEmbedding, factor: int) -> None:
    """Keep the first log2(factor) strides of ControlNet's hint encoder, 3-16-16-32(s2)-32-96(s2)-96-256(s2)-D(zero)."""
    if factor not in FACTORS:
        raise ValueError(f'a hint encoder has a factor of {", ".join(map(str, FACTORS))}, got {factor!r}.')
    strided = [layer for layer in hint_encoder.blocks if layer.stride != (1, 1)]
    for layer in strided[FACTORS.index(factor):]:
        layer.stride = (1, 1)
