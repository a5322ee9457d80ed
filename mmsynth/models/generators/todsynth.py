"""TODSynth: mask- and text-conditioned flow matching with an MM-DiT (arXiv 2512.16740).

Legend: B batch, C latent channels, h w latent cells, H W pixels.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn

from mmsynth.guidance.base import Guidance
from mmsynth.models.backbone import keep_in_checkpoints, leave_out_backbone
from mmsynth.models.encoders import LatentCodec
from mmsynth.models.generators.base import TRAINABLE_STATES, BaseGenerator, build, stack_masks
from mmsynth.models.label_codecs import LabelCodec
from mmsynth.models.lora import LoRASettings, add_lora, merge_lora
from mmsynth.models.networks.mmdit import BRANCHES, MMDiT
from mmsynth.registry import MODELS
from mmsynth.sampling import sample_flow_match
from mmsynth.structures import SynthDataSample
from mmsynth.utils import seeded_noise

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
    """Paints images for masks and prompts with an MM-DiT that the mask steers.

    Args:
        network: An :class:`~mmsynth.models.networks.MMDiT`, or its config.
        latent_codec: Latent codec, or its config; its channels are the network's.
        label_codec: Label codec, or its config; fixes the class count.
        text_encoder: A module with ``encode(prompts) -> (prompt_embeds, pooled_prompt_embeds)``, or its config.
        scheduler: Settings of a diffusers ``FlowMatchEulerDiscreteScheduler``; SD3's (shift 3) by default.
        trainable: State of each branch: 'full', 'lora' (its weights frozen, low-rank updates of them trained) or
            'frozen'; by default as released: text frozen, the others full.
        lora: Settings of the branches that are 'lora', see :class:`~mmsynth.models.lora.LoRASettings`: ``rank``,
            ``alpha``, ``target_modules``, ``dropout``.
        weighting_scheme: SD3's density of training sigmas and loss weight: 'none', 'logit_normal', 'mode',
            'sigma_sqrt' or 'cosmap' (diffusers' names; SD3, arXiv 2403.03206, section 3.1).
        prompt_dropout: Share of training prompts replaced by the empty one, for classifier-free guidance, in [0, 1].
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance towards the prompt, the mask kept in both passes; 1 is off.
        data_preprocessor: Config of a :class:`~mmsynth.models.SynthDataPreprocessor`.

    Raises:
        ValueError: If an option is out of range, codecs and network do not fit each other, or LoRA finds no layer.

    Checkpoints leave out the frozen tensors that a ``pretrained`` backbone holds (:mod:`mmsynth.models.backbone`).
    """

    def __init__(self,
                 network: MMDiT | dict,
                 latent_codec: LatentCodec | dict,
                 label_codec: LabelCodec | dict,
                 text_encoder: nn.Module | dict,
                 scheduler: dict | None = None,
                 trainable: Mapping[str, str] | None = None,
                 lora: Mapping[str, Any] | None = None,
                 weighting_scheme: str = 'none',
                 prompt_dropout: float = 0.0,
                 num_steps: int = 23,
                 guidance_scale: float = 1.0,
                 data_preprocessor: dict | None = None) -> None:
        if weighting_scheme not in WEIGHTING_SCHEMES:
            raise ValueError(f'`weighting_scheme` must be one of {", ".join(WEIGHTING_SCHEMES)}, '
                             f'got {weighting_scheme!r}.')
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f'`prompt_dropout` must be in [0, 1], got {prompt_dropout}.')
        self._trainable = _check_trainable(trainable or {}, lora)
        lora_settings = LoRASettings(**(lora or {}))
        super().__init__(data_preprocessor, latent_codec, label_codec, num_steps, guidance_scale)
        self.network: MMDiT = build(network)
        self.text_encoder: nn.Module = build(text_encoder)
        self.scheduler = FlowMatchEulerDiscreteScheduler(**(dict(shift=3.0) if scheduler is None else scheduler))
        self.weighting_scheme = weighting_scheme
        self.prompt_dropout = prompt_dropout
        self._check_channels()
        self._set_trainable(lora_settings)
        leave_out_backbone(self)

    def loss(self, inputs: Tensor, data_samples: list[SynthDataSample]) -> dict[str, Tensor]:
        """Flow-matching loss ``weight * ‖v - (eps - z0)‖²``, averaged.

        Args:
            inputs: Images (B, 3, H, W), float, [-1, 1], RGB.
            data_samples: With masks and prompts.
        """
        clean = self.latent_codec.encode(inputs, sample=True).float()
        condition = self.encode_condition(self._drop_prompts(data_samples), stack_masks(data_samples, inputs.device))
        sigma, weight = self._draw_sigmas(len(clean), clean.device)
        noise = torch.randn_like(clean)
        noisy = (1 - sigma) * clean + sigma * noise
        velocity = self._velocity(noisy, 1000 * sigma.flatten(), condition)
        error = (velocity.float() - (noise - clean))**2
        return dict(loss_velocity=(weight * error).mean())

    def sample_latents(self, data_samples: Sequence[SynthDataSample], masks: Tensor, seeds: Sequence[int], *,
                       guidance: Guidance | None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """As in :class:`BaseGenerator`: flow matching from each sample's own noise."""
        condition = self.encode_condition([_prompt(sample) for sample in data_samples], masks)
        negative = None
        if self.guidance_scale > 1:
            negative = replace(condition, **self._encode_prompts([''] * len(masks)))

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            velocity = self._velocity(latents, timestep, condition)
            if negative is None:
                return velocity
            unconditional = self._velocity(latents, timestep, negative)
            return unconditional + self.guidance_scale * (velocity - unconditional)

        noise = seeded_noise(seeds, self.latent_codec.latent_shape(*masks.shape[-2:]), device=masks.device)
        guide = None if guidance is None else guidance.bind(self.latent_codec.decode, masks)
        return sample_flow_match(predict, noise, self.scheduler, self.num_steps, guide)

    def encode_condition(self, prompts: Sequence[str], masks: Tensor) -> Condition:
        """Encode prompts and masks (B, H, W) for the network."""
        control = self.label_codec.encode(masks)  # (B, Cm, H, W)
        if self.label_codec.is_image:
            mask_latents = self.latent_codec.encode(control).float()
        else:
            mask_latents = F.avg_pool2d(control, self.latent_codec.factor)
        return Condition(mask_latents=mask_latents, **self._encode_prompts(prompts))

    @property
    def has_lora(self) -> bool:
        """Whether a branch is trained by low-rank updates."""
        return 'lora' in self._trainable.values()

    def merge_lora(self) -> int:
        """Add the low-rank updates to the weights; the network computes the same as before, with plain layers.

        The adapted branches count as fully trained afterwards: a checkpoint holds the whole of them.

        Returns:
            The number of layers that had an update.
        """
        count = merge_lora(self.network)
        for branch in (branch for branch, state in self._trainable.items() if state == 'lora'):
            parameters = self.network.branch_parameters(branch)
            keep_in_checkpoints(self, (f'network.{name}' for name in parameters))
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            self._trainable[branch] = 'full'
        return count

    def _encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds = self.text_encoder.encode(prompts)
        return {key: getattr(embeds, key).to(self.device) for key in ('prompt_embeds', 'pooled_prompt_embeds')}

    def _velocity(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        return self.network(latents, timestep, condition.prompt_embeds, condition.pooled_prompt_embeds,
                            condition.mask_latents)

    def _drop_prompts(self, data_samples: Sequence[SynthDataSample]) -> list[str]:
        dropped = torch.rand(len(data_samples)) < self.prompt_dropout
        return ['' if drop else _prompt(sample) for sample, drop in zip(data_samples, dropped)]

    def _draw_sigmas(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Training sigmas (count, 1, 1, 1) from the scheduler's table, and their loss weights of the same shape."""
        share = compute_density_for_timestep_sampling(
            self.weighting_scheme, count, logit_mean=0.0, logit_std=1.0, mode_scale=1.29)
        table = self.scheduler.sigmas
        sigma = table[(share * len(table)).long().clamp(max=len(table) - 1)].to(device)[:, None, None, None]
        return sigma, compute_loss_weighting_for_sd3(self.weighting_scheme, sigma)

    def _check_channels(self) -> None:
        if self.latent_codec.channels != self.network.latent_channels:
            raise ValueError(f'`network` takes latents of {self.network.latent_channels} channels, `latent_codec` '
                             f'makes {self.latent_codec.channels}; set the trunk\'s `in_channels` to that, or change '
                             'the codec.')
        channels = self.latent_codec.channels if self.label_codec.is_image else self.label_codec.channels
        if channels != self.network.mask_channels:
            raise ValueError(f'`network.mask_channels` is {self.network.mask_channels}, `label_codec` '
                             f'({type(self.label_codec).__name__}) gives {channels}; set it to {channels}.')

    def _set_trainable(self, lora: LoRASettings) -> None:
        adapted = [branch for branch, state in self._trainable.items() if state == 'lora']
        if adapted:
            add_lora(self.network, adapted, lora)
        for branch, state in self._trainable.items():
            for name, parameter in self.network.branch_parameters(branch).items():
                parameter.requires_grad_(state == 'full' or state == 'lora' and 'lora_' in name)


def _check_trainable(trainable: Mapping[str, str], lora: Mapping[str, Any] | None) -> dict[str, str]:
    """The state of every branch, in the order of BRANCHES."""
    unknown = trainable.keys() - set(BRANCHES)
    wrong = {branch: state for branch, state in trainable.items() if state not in TRAINABLE_STATES}
    if unknown or wrong:
        raise ValueError(f'`trainable` takes the branches {", ".join(BRANCHES)}, each one of '
                         f'{", ".join(TRAINABLE_STATES)}; got {dict(trainable)}.')
    states = dict(image='full', mask='full', text='frozen') | dict(trainable)
    if lora is not None and 'lora' not in states.values():
        raise ValueError(f"`lora` has no effect: no branch of `trainable` is 'lora', got {states}. Set for example "
                         "`trainable.image='lora'`, or leave `lora` out.")
    return states


def _prompt(sample: SynthDataSample) -> str:
    if 'prompt' not in sample:
        raise ValueError(f"sample {sample.get('sample_id', '?')} has no prompt; add dict(type='mmsynth.BuildPrompt') "
                         'to the pipeline of the dataset, or prompts to its manifest.')
    return sample.prompt
