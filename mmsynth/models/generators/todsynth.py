"""TODSynth: mask- and text-conditioned flow matching with an MM-DiT (arXiv 2512.16740).

Legend: B batch, C latent channels, h w latent cells, H W pixels.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from mmsynth.guidance.base import Guidance
from mmsynth.models.encoders import LatentCodec, TextEncoder
from mmsynth.models.generators.base import BaseGenerator, prompt_of, stack_masks
from mmsynth.models.label_codecs import LabelCodec
from mmsynth.models.networks.diffusers_controlnet import SD3ControlNet
from mmsynth.models.networks.mmdit import MMDiT
from mmsynth.models.precision import Precision
from mmsynth.registry import MODELS
from mmsynth.sampling import Negative, StepEnd, build_flow_sampler, build_flow_scheduler, classifier_free
from mmsynth.structures import SynthDataSample
from mmsynth.utils.labels import IGNORE_INDEX

WEIGHTING_SCHEMES = ('none', 'logit_normal', 'mode', 'sigma_sqrt', 'cosmap')


@dataclass(frozen=True)
class Condition:
    """All that the network is given beside the noisy latents and the time.

    Attributes:
        prompt_embeds: (B, T, joint_attention_dim).
        pooled_prompt_embeds: (B, pooled_projection_dim).
        mask_latents: (B, Cm, h, w).
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    mask_latents: Tensor


@MODELS.register_module()
class TODSynth(BaseGenerator):
    """Generates images for masks and prompts with an MM-DiT that the mask steers.

    Args:
        network: An :class:`~mmsynth.models.networks.MMDiT`, or its config.
        latent_codec: Latent codec, or its config; its channels are the network's.
        label_codec: Label codec, or its config; fixes the class count.
        text_encoder: A module with ``encode(prompts) -> (prompt_embeds, pooled_prompt_embeds)``, or its config.
        scheduler: Settings of a diffusers ``FlowMatchEulerDiscreteScheduler``; those left out are SD3's (shift 3).
        sampler: The diffusers scheduler of synthesis, ``type`` and its settings, see
            :func:`~mmsynth.sampling.build_flow_sampler`; ``scheduler`` itself, Euler's method, as released by default.
        trainable: State of each branch: 'full', 'lora' (its weights frozen, low-rank updates of them trained) or
            'frozen'; by default as released: text frozen, the others full.
        lora: Settings of the branches that are 'lora', see :class:`~mmsynth.models.lora.LoRASettings`: ``rank``,
            ``alpha``, ``target_modules``, ``dropout``.
        weighting_scheme: SD3's density of training sigmas and loss weight: 'none', 'logit_normal', 'mode',
            'sigma_sqrt' or 'cosmap' (diffusers' names; SD3, arXiv 2403.03206, section 3.1).
        prompt_dropout: Share of training prompts replaced by the empty one, for classifier-free guidance, in [0, 1].
        mask_dropout: Share of training masks replaced by the null mask (255 everywhere), for guidance towards the
            mask, in [0, 1].
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance towards the prompt, the mask kept in both passes; 1 is off.
        guidance_interval: Lowest and highest sigma, in [0, 1], at which that guidance acts (arXiv 2404.07724).
        mask_guidance_scale: Guidance towards the mask, away from the null mask, the prompt kept in both passes: at 1,
            off; above 1 the mask shows more, below 1 less.
        mask_guidance_interval: Lowest and highest sigma at which that guidance acts.
        dtype: What the network computes in, see :class:`BaseGenerator`.
        compile: Compile the network, see there.
        data_preprocessor: Config of a :class:`~mmsynth.models.SynthDataPreprocessor`.

    Raises:
        ValueError: If an option is out of range, codecs and network do not fit each other, or LoRA finds no layer.
    """

    branches: ClassVar[Mapping[str, str]] = dict(image='full', mask='full', text='frozen')
    network: MMDiT | SD3ControlNet

    def __init__(self,
                 network: MMDiT | SD3ControlNet | dict,
                 latent_codec: LatentCodec | dict,
                 label_codec: LabelCodec | dict,
                 text_encoder: TextEncoder | dict,
                 scheduler: dict | None = None,
                 sampler: Mapping[str, Any] | None = None,
                 trainable: Mapping[str, str] | None = None,
                 lora: Mapping[str, Any] | None = None,
                 weighting_scheme: str = 'none',
                 prompt_dropout: float = 0.0,
                 mask_dropout: float = 0.0,
                 num_steps: int = 23,
                 guidance_scale: float = 1.0,
                 guidance_interval: Sequence[float] = (0.0, 1.0),
                 mask_guidance_scale: float = 1.0,
                 mask_guidance_interval: Sequence[float] = (0.0, 1.0),
                 dtype: Precision | None = None,
                 compile: bool | Mapping[str, Any] = False,
                 data_preprocessor: dict | None = None) -> None:
        if weighting_scheme not in WEIGHTING_SCHEMES:
            raise ValueError(f'`weighting_scheme` must be one of {", ".join(WEIGHTING_SCHEMES)}, '
                             f'got {weighting_scheme!r}.')
        training, sampling = build_flow_scheduler(scheduler), build_flow_sampler(sampler, scheduler)
        super().__init__(
            network,
            latent_codec,
            label_codec,
            text_encoder,
            trainable=trainable,
            lora=lora,
            prompt_dropout=prompt_dropout,
            mask_dropout=mask_dropout,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            mask_guidance_scale=mask_guidance_scale,
            mask_guidance_interval=mask_guidance_interval,
            dtype=dtype,
            compile=compile,
            data_preprocessor=data_preprocessor)
        self.scheduler = training
        self.sampler = sampling
        self.weighting_scheme = weighting_scheme

    def loss(self, inputs: Tensor, data_samples: list[SynthDataSample]) -> dict[str, Tensor]:
        """Flow-matching loss ``weight * ‖v - (eps - z0)‖²``, averaged.

        Args:
            inputs: Images (B, 3, H, W), float, [-1, 1], RGB.
            data_samples: With masks and prompts.
        """
        rng = self._training_rng()
        clean = self.latent_codec.encode(inputs, generator=rng).float()
        prompts = self._drop_prompts(data_samples, rng)
        masks = self._drop_masks(stack_masks(data_samples, inputs.device), rng)
        condition = self.encode_condition(prompts, masks)
        sigma, weight = self._draw_sigmas(len(clean), clean.device, rng)
        noise = torch.randn(clean.shape, generator=rng).to(clean.device)
        noisy = (1 - sigma) * clean + sigma * noise
        velocity = self._velocity(noisy, 1000 * sigma.flatten(), condition)
        error = (velocity - (noise - clean))**2
        return dict(loss_velocity=(weight * error).mean())

    def sample_latents(self, data_samples: Sequence[SynthDataSample], masks: Tensor, seeds: Sequence[int], *,
                       guidance: Guidance | None,
                       on_step_end: StepEnd | None = None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """As in :class:`BaseGenerator`: flow matching from each sample's own noise."""
        condition = self.encode_condition([prompt_of(sample) for sample in data_samples], masks)
        negatives = []
        if self.guidance_scale != 1:
            empty = self._encode_prompts([''] * len(masks))._asdict()
            negatives.append(Negative(replace(condition, **empty), self.guidance_scale, self.guidance_interval))
        if self.mask_guidance_scale != 1:
            null = self._encode_masks(torch.full_like(masks, IGNORE_INDEX))
            negatives.append(Negative(replace(condition, mask_latents=null), self.mask_guidance_scale,
                                      self.mask_guidance_interval))
        predict = classifier_free(self._velocity, condition, negatives, lambda timestep: float(timestep[0]) / 1000)
        shape = self.latent_codec.latent_shape(*masks.shape[-2:])
        return self._run(predict, self.sampler, shape, masks, seeds, guidance, on_step_end)

    def encode_condition(self, prompts: Sequence[str], masks: Tensor) -> Condition:
        """Encode prompts and masks (B, H, W) for the network."""
        return Condition(mask_latents=self._encode_masks(masks), **self._encode_prompts(prompts)._asdict())

    @property
    def control_channels(self) -> int:
        """As in :class:`BaseGenerator`: those of its latent, where the control image is a picture."""
        return self.latent_codec.channels if self.label_codec.is_image else self.label_codec.channels

    def _check_channels(self) -> None:
        super()._check_channels()
        if self.latent_codec.factor % self.label_codec.patch_size:
            raise ValueError(f'`label_codec.patch_size` {self.label_codec.patch_size} must divide the '
                             f"{self.latent_codec.factor} pixels of the latent codec's cells.")

    def _encode_masks(self, masks: Tensor) -> Tensor:
        control = self.label_codec.encode(masks)  # (B, Cm, H, W)
        if self.label_codec.is_image:
            return self.latent_codec.encode(control).float()
        return F.avg_pool2d(control, self.latent_codec.factor // self.label_codec.patch_size)

    def _velocity(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        with self.computing():
            return self.network(latents, timestep, condition.prompt_embeds, condition.pooled_prompt_embeds,
                                condition.mask_latents).float()

    def _draw_sigmas(self, count: int, device: torch.device, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training sigmas (count, 1, 1, 1) from the scheduler's table, and their loss weights of the same shape."""
        share = compute_density_for_timestep_sampling(
            self.weighting_scheme, count, logit_mean=0.0, logit_std=1.0, mode_scale=1.29, generator=rng)
        table = self.scheduler.sigmas
        sigma = table[(share * len(table)).long().clamp(max=len(table) - 1)].to(device)[:, None, None, None]
        return sigma, compute_loss_weighting_for_sd3(self.weighting_scheme, sigma)
