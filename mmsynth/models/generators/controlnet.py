"""A trained ControlNet of diffusers as a generator: under guidance, filter, pool and online mixing like any other.

Legend: B batch, C latent channels, h w latent cells, H W pixels, T text tokens.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from mmsynth.guidance.base import Guidance
from mmsynth.models.encoders import CLIPTextEncoder, SD3TextEncoder, TextEncoder, VAECodec
from mmsynth.models.generators.base import BaseGenerator, prompt_of, stack_masks
from mmsynth.models.generators.todsynth import TODSynth
from mmsynth.models.label_codecs import PaletteCodec
from mmsynth.models.networks.diffusers_controlnet import SD3ControlNet, UNetControlNet
from mmsynth.models.precision import Precision
from mmsynth.registry import MODELS
from mmsynth.sampling import Negative, StepEnd, build_sampler, classifier_free, noise_of_velocity
from mmsynth.sampling.schedulers import STABLE_DIFFUSION_SCHEDULE
from mmsynth.structures import SynthDataSample
from mmsynth.utils.labels import IGNORE_INDEX


@MODELS.register_module(name='DiffusersControlNet')
def diffusers_controlnet(pretrained: str,
                         controlnet: str,
                         palette: Sequence[Sequence[int]],
                         conditioning_scale: float = 1.0,
                         text_encoder: dict[str, Any] | None = None,
                         sampler: Mapping[str, Any] | None = None,
                         trainable: Mapping[str, str] | None = None,
                         prompt_dropout: float = 0.0,
                         num_steps: int = 30,
                         guidance_scale: float = 7.0,
                         mask_guidance_scale: float = 1.0,
                         dtype: Precision | None = None,
                         compile: bool | Mapping[str, Any] = False) -> BaseGenerator:
    """Build a generator of a trained ControlNet, of Stable Diffusion 1.5 or 3.

    It needs no checkpoint to generate. Training goes on with the ControlNet, the network that it steers stays frozen.

    Args:
        pretrained: Folder or hub id of the Stable Diffusion that the ControlNet was trained for.
        controlnet: Folder or hub id of a ``ControlNetModel`` or ``SD3ControlNetModel``.
        palette: The colours (K, 3), RGB in [0, 255], that the ControlNet knows the classes by; black is unlabelled.
        conditioning_scale: Strength of the ControlNet.
        text_encoder: Config of another text encoder than that of ``pretrained``, such as ``CachedTextEncoder``.
        sampler: ``type`` and settings of a diffusers scheduler, see :mod:`mmsynth.sampling.schedulers`.
        trainable: State of each branch: 'unet' and 'control' of Stable Diffusion 1.5, 'image' and 'mask' of 3.
        prompt_dropout, num_steps, guidance_scale, mask_guidance_scale, dtype, compile: As in :class:`BaseGenerator`.

    Raises:
        ValueError: If the ControlNet is of another kind, or an option is out of range.
    """
    kind = ControlNetModel.load_config(controlnet).get('_class_name')
    options: dict[str, Any] = dict(
        latent_codec=VAECodec(pretrained), label_codec=PaletteCodec(palette), sampler=sampler,
        prompt_dropout=prompt_dropout, num_steps=num_steps, guidance_scale=guidance_scale,
        mask_guidance_scale=mask_guidance_scale, dtype=dtype, compile=compile)
    if kind == 'ControlNetModel':
        network = UNetControlNet(UNet2DConditionModel.from_pretrained(pretrained, subfolder='unet'),
                                 ControlNetModel.from_pretrained(controlnet), conditioning_scale)
        scheduler = DDPMScheduler.load_config(pretrained, subfolder='scheduler')
        return StableDiffusionControlNet(network, text_encoder=text_encoder or CLIPTextEncoder(pretrained),
                                         scheduler=scheduler, trainable=trainable, **options)
    if kind == 'SD3ControlNetModel':
        scheduler = DDPMScheduler.load_config(pretrained, subfolder='scheduler')
        return TODSynth(SD3ControlNet(pretrained, controlnet, conditioning_scale),
                        text_encoder=text_encoder or SD3TextEncoder(pretrained),
                        scheduler=dict(shift=scheduler.get('shift', 3.0)),
                        trainable=trainable or dict(image='frozen', mask='full', text='frozen'), **options)
    raise ValueError(f'`controlnet`: {controlnet} is a {kind}; ControlNetModel and SD3ControlNetModel are supported.')


@dataclass(frozen=True)
class Condition:
    """All that the network is given beside the noisy latents and the time.

    Attributes:
        prompt_embeds: (B, T, cross_attention_dim).
        control: Control images (B, 3, H, W), in [0, 1].
    """

    prompt_embeds: Tensor
    control: Tensor


class StableDiffusionControlNet(BaseGenerator):
    """A ControlNet of Stable Diffusion 1.5; see :func:`diffusers_controlnet` and, of mmagic, :func:`mmagic_generator`.

    Args:
        network: The two networks.
        latent_codec, label_codec, text_encoder: See :class:`BaseGenerator`.
        scheduler: The config of the scheduler that comes with the backbone: its noise schedule, and what is predicted.
        sampler, trainable, prompt_dropout, num_steps, guidance_scale, mask_guidance_scale, dtype, compile: See there.
    """

    branches: ClassVar[Mapping[str, str]] = dict(unet='frozen', control='full')
    network: UNetControlNet

    def __init__(self, network: UNetControlNet, latent_codec: VAECodec, label_codec: PaletteCodec,
                 text_encoder: TextEncoder | dict[str, Any], *, scheduler: Mapping[str, Any],
                 sampler: Mapping[str, Any] | None, trainable: Mapping[str, str] | None, prompt_dropout: float,
                 num_steps: int, guidance_scale: float, mask_guidance_scale: float, dtype: Precision | None,
                 compile: bool | Mapping[str, Any]) -> None:
        super().__init__(
            network, latent_codec, label_codec, text_encoder, trainable=trainable, lora=None,
            prompt_dropout=prompt_dropout, mask_dropout=0.0, num_steps=num_steps, guidance_scale=guidance_scale,
            guidance_interval=(0.0, 1.0), mask_guidance_scale=mask_guidance_scale, mask_guidance_interval=(0.0, 1.0),
            dtype=dtype, compile=compile, data_preprocessor=None)
        schedule = {key: scheduler[key] for key in STABLE_DIFFUSION_SCHEDULE if key in scheduler}
        self.predicts_velocity = scheduler.get('prediction_type', 'epsilon') == 'v_prediction'
        self.scheduler = DDPMScheduler(**schedule)
        self.sampler = build_sampler(sampler, schedule)

    def loss(self, inputs: Tensor, data_samples: list[SynthDataSample]) -> dict[str, Tensor]:
        """Denoising loss, averaged: of the noise or the velocity, as the backbone predicts.

        Args:
            inputs: Images (B, 3, H, W), float, [-1, 1], RGB.
            data_samples: With masks and prompts.
        """
        rng = self._training_rng()
        clean = self.latent_codec.encode(inputs, generator=rng).float()
        condition = self.encode_condition(self._drop_prompts(data_samples, rng),
                                          stack_masks(data_samples, inputs.device))
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (len(clean), ), generator=rng)
        timestep = timestep.to(clean.device)
        noise = torch.randn(clean.shape, generator=rng).to(clean.device)
        predicted = self._predict(self.scheduler.add_noise(clean, noise, timestep), timestep, condition)
        if self.predicts_velocity:
            return dict(loss_velocity=F.mse_loss(predicted, self.scheduler.get_velocity(clean, noise, timestep)))
        return dict(loss_noise=F.mse_loss(predicted, noise))

    def sample_latents(self, data_samples: Sequence[SynthDataSample], masks: Tensor, seeds: Sequence[int], *,
                       guidance: Guidance | None,
                       on_step_end: StepEnd | None = None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """As in :class:`BaseGenerator`."""
        condition = self.encode_condition([prompt_of(sample) for sample in data_samples], masks)
        negatives = []
        if self.guidance_scale != 1:
            empty = self._encode_prompts([''] * len(masks)).prompt_embeds
            negatives.append(Negative(replace(condition, prompt_embeds=empty), self.guidance_scale))
        if self.mask_guidance_scale != 1:
            null = self._encode_masks(torch.full_like(masks, IGNORE_INDEX))
            negatives.append(Negative(replace(condition, control=null), self.mask_guidance_scale))
        predict = classifier_free(self._noise, condition, negatives, lambda timestep: 0.5)  # intervals are whole
        shape = self.latent_codec.latent_shape(*masks.shape[-2:])
        return self._run(predict, self.sampler, shape, masks, seeds, guidance, on_step_end)

    def encode_condition(self, prompts: Sequence[str], masks: Tensor) -> Condition:
        """Encode prompts and masks (B, H, W) for the network."""
        return Condition(self._encode_prompts(prompts).prompt_embeds, self._encode_masks(masks))

    def _encode_masks(self, masks: Tensor) -> Tensor:
        return (self.label_codec.encode(masks) + 1) / 2

    def _predict(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        with self.computing():
            return self.network(latents, timestep, condition.prompt_embeds, condition.control).float()

    def _noise(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        predicted = self._predict(latents, timestep, condition)
        if not self.predicts_velocity:
            return predicted
        return noise_of_velocity(predicted, latents, timestep, self.scheduler.alphas_cumprod)
