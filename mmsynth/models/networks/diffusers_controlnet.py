"""diffusers' own ControlNets with the networks that they steer (ControlNet, arXiv 2302.05543).

Loaded whole from folders or hub ids in the diffusers layout, nothing has to be trained before they generate.

Legend: B batch, C latent channels, h w latent cells, H W pixels, T text tokens.
"""
from typing import ClassVar

from diffusers import ControlNetModel, SD3ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn


class UNetControlNet(nn.Module):
    """Stable Diffusion 1.5's U-Net and a ``ControlNetModel``.

    Args:
        unet: The U-Net.
        controlnet: The ControlNet.
        conditioning_scale: Strength of the ControlNet's residuals.

    Attributes:
        is_pretrained: Whether both have trained weights, so that no checkpoint is needed.
    """

    latent_channels: int
    mask_channels: int
    _parts: ClassVar[dict[str, str]] = dict(unet='unet', control='controlnet')

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel,
                 conditioning_scale: float = 1.0) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.conditioning_scale = conditioning_scale
        self.is_pretrained = all(bool(part.config.get('_name_or_path')) for part in (unet, controlnet))
        self.latent_channels = self.unet.config.in_channels
        self.mask_channels = self.controlnet.config.conditioning_channels

    def branch_parameters(self, branch: str) -> dict[str, nn.Parameter]:
        """The named parameters of 'unet' or 'control'."""
        return _named(self, self._parts.get(branch))

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, control: Tensor) -> Tensor:
        """Predict the noise (B, C, h, w).

        Args:
            latents: Noisy latents (B, C, h, w).
            timestep: (B,), in [0, 1000).
            prompt_embeds: (B, T, cross_attention_dim).
            control: Control images (B, 3, H, W), in [0, 1], RGB.
        """
        down, middle = self.controlnet(
            latents, timestep, encoder_hidden_states=prompt_embeds, controlnet_cond=control,
            conditioning_scale=self.conditioning_scale, return_dict=False)
        return self.unet(latents, timestep, encoder_hidden_states=prompt_embeds, down_block_additional_residuals=down,
                         mid_block_additional_residual=middle, return_dict=False)[0]


class SD3ControlNet(nn.Module):
    """Stable Diffusion 3's transformer and an ``SD3ControlNetModel``, in the place of an ``MMDiT``.

    Args:
        pretrained: Folder or hub id whose ``transformer`` is loaded.
        controlnet: Folder or hub id of the ControlNet.
        conditioning_scale: Strength of the ControlNet's residuals.
    """

    is_pretrained = True
    latent_channels: int
    mask_channels: int
    _parts: ClassVar[dict[str, str]] = dict(image='transformer', mask='controlnet')

    def __init__(self, pretrained: str, controlnet: str, conditioning_scale: float = 1.0) -> None:
        super().__init__()
        self.transformer = SD3Transformer2DModel.from_pretrained(pretrained, subfolder='transformer')
        self.controlnet = SD3ControlNetModel.from_pretrained(controlnet)
        self.conditioning_scale = conditioning_scale
        self.latent_channels = self.transformer.config.in_channels
        self.mask_channels = self.controlnet.config.in_channels

    def branch_parameters(self, branch: str) -> dict[str, nn.Parameter]:
        """The named parameters of 'image', the transformer, or 'mask', the ControlNet; 'text' has none of its own."""
        return _named(self, self._parts.get(branch))

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, pooled_prompt_embeds: Tensor,
                mask_latents: Tensor) -> Tensor:
        """Predict the velocity (B, C, h, w).

        Args:
            latents: Noisy latents (B, C, h, w).
            timestep: (B,), 1000 sigma.
            prompt_embeds: (B, T, joint_attention_dim).
            pooled_prompt_embeds: (B, pooled_projection_dim).
            mask_latents: The control image's latents (B, C, h, w).
        """
        residuals = self.controlnet(
            hidden_states=latents, timestep=timestep, encoder_hidden_states=prompt_embeds,
            pooled_projections=pooled_prompt_embeds, controlnet_cond=mask_latents,
            conditioning_scale=self.conditioning_scale, return_dict=False)[0]
        return self.transformer(
            hidden_states=latents, timestep=timestep, encoder_hidden_states=prompt_embeds,
            pooled_projections=pooled_prompt_embeds, block_controlnet_hidden_states=residuals, return_dict=False)[0]


def _named(network: nn.Module, part: str | None) -> dict[str, nn.Parameter]:
    return {name: value for name, value in network.named_parameters() if name.split('.')[0] == part}
