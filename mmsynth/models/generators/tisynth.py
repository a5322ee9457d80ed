"""TISynth: latent diffusion steered by a mask and a reference image (Information Fusion, 10.1016/j.inffus.2025.103839).

Legend: B batch, C latent channels, h w latent cells, H W pixels, T tokens of a prompt.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from mmsynth.guidance.base import Guidance
from mmsynth.models.encoders import LatentCodec, TextEncoder
from mmsynth.models.generators.base import BaseGenerator, prompt_of, stack_masks
from mmsynth.models.generators.checks import check_condition_guidance, check_interval, check_share
from mmsynth.models.label_codecs import IdCodec, LabelCodec
from mmsynth.models.networks.controlled_unet import ControlledUNet
from mmsynth.models.precision import Precision
from mmsynth.registry import MODELS
from mmsynth.sampling import (
    Negative,
    StepEnd,
    build_sampler,
    classifier_free,
    complete_schedule,
    noise_of_velocity,
)
from mmsynth.structures import SynthDataSample
from mmsynth.utils.labels import IGNORE_INDEX

PREDICTION_TYPES = ('epsilon', 'v_prediction')


@dataclass(frozen=True)
class Condition:
    """All that the network is given beside the noisy latents and the time; the same at every step of a run.

    Attributes:
        prompt_embeds: (B, T, cross_attention_dim).
        mask_hint: What the network's ``encode_mask`` made of the control images, (B, D, h, w).
        reference_hint: What its ``encode_reference`` made of the reference latents, (B, D, h, w).
    """

    prompt_embeds: Tensor
    mask_hint: Tensor
    reference_hint: Tensor


@MODELS.register_module()
class TISynth(BaseGenerator):
    """Generates images with the layout of a mask and the appearance of a reference image.

    Samples bring their reference in the field ``reference``: in training an augmented copy of the image itself
    (:class:`~mmsynth.datasets.transforms.ReferenceAugment`), at synthesis an image of the domain to generate for
    (:class:`~mmsynth.datasets.transforms.LoadReference`, :class:`~mmsynth.datasets.transforms.PickReference`).

    Args:
        network: A :class:`~mmsynth.models.networks.ControlledUNet`, or its config.
        latent_codec: Latent codec, or its config; its channels are the network's.
        label_codec: Label codec, or its config; fixes the class count. Its control image enters the mask branch at
            pixel resolution.
        text_encoder: A module with ``encode(prompts) -> (prompt_embeds, pooled_prompt_embeds)``, or its config.
        scheduler: The training schedule, settings of a diffusers ``DDPMScheduler``: ``beta_schedule``, ``beta_start``,
            ``beta_end``, ``num_train_timesteps``; those left out are Stable Diffusion's.
        prediction_type: What the network predicts, as diffusers calls it: 'epsilon', the noise, as released; or
            'v_prediction', the velocity ``alpha * eps - sigma * z0`` (arXiv 2202.00512), for backbones that do, and for
            small networks from scratch: at high noise it is the easier of the two.
        timestep_density: ``logit_mean`` and ``logit_std`` of the training timesteps, whose share of the schedule is
            then logit-normal (arXiv 2403.03206, section 3.1); uniform by default, as released. At most of Stable
            Diffusion's timesteps nothing can be seen of a small image: a mean below 0 draws fewer of them.
        sampler: The diffusers scheduler of synthesis, ``type`` and its settings, see
            :func:`~mmsynth.sampling.build_sampler`; DDIM as released by default.
        trainable: State of each branch: 'full', 'lora' (its weights frozen, low-rank updates of them trained) or
            'frozen'. By default the U-Net is frozen and the others train.
        lora: Settings of the branches that are 'lora', see :class:`~mmsynth.models.lora.LoRASettings`.
        prompt_dropout: Share of training prompts replaced by the empty one, for classifier-free guidance, in [0, 1].
        mask_dropout: Share of training masks replaced by the null mask (255 everywhere), for guidance towards the
            mask, in [0, 1].
        reference_dropout: Share of training references replaced by the null reference (a latent of zeros), for guidance
            towards the reference, in [0, 1].
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance away from the empty prompt, mask and reference kept in both passes; 1
            is off.
        guidance_interval: Lowest and highest sigma, in [0, 1], at which that guidance acts (arXiv 2404.07724).
        mask_guidance_scale: Guidance towards the mask, away from the null mask, all else kept: at 1, off; above 1 the
            mask shows more, below 1 less.
        mask_guidance_interval: Lowest and highest sigma at which that guidance acts.
        reference_guidance_scale: The same for the reference: how much of its appearance is taken over.
        reference_guidance_interval: Lowest and highest sigma at which that guidance acts.
        legacy: Train and encode as released: masks as class id / 255 (the label codec must be an
            :class:`~mmsynth.models.label_codecs.IdCodec`), and the mask branch is frozen by default. (The release puts
            it in a list of trained parameters that is overwritten; the paper means to train it.) The network has a
            ``legacy`` of its own.
        dtype: What the network computes in, see :class:`BaseGenerator`.
        compile: Compile the network, see there.
        data_preprocessor: Config of a :class:`~mmsynth.models.SynthDataPreprocessor`.

    Raises:
        ValueError: If an option is out of range, codecs and network do not fit each other, or LoRA finds no layer.
    """

    branches: ClassVar[Mapping[str, str]] = dict(unet='frozen', attention='full', mask='full', reference='full')
    network: ControlledUNet

    def __init__(self,
                 network: ControlledUNet | dict,
                 latent_codec: LatentCodec | dict,
                 label_codec: LabelCodec | dict,
                 text_encoder: TextEncoder | dict,
                 scheduler: Mapping[str, Any] | None = None,
                 prediction_type: str = 'epsilon',
                 timestep_density: Mapping[str, float] | None = None,
                 sampler: Mapping[str, Any] | None = None,
                 trainable: Mapping[str, str] | None = None,
                 lora: Mapping[str, Any] | None = None,
                 prompt_dropout: float = 0.0,
                 mask_dropout: float = 0.0,
                 reference_dropout: float = 0.0,
                 num_steps: int = 50,
                 guidance_scale: float = 9.0,
                 guidance_interval: Sequence[float] = (0.0, 1.0),
                 mask_guidance_scale: float = 1.0,
                 mask_guidance_interval: Sequence[float] = (0.0, 1.0),
                 reference_guidance_scale: float = 1.0,
                 reference_guidance_interval: Sequence[float] = (0.0, 1.0),
                 legacy: bool = False,
                 dtype: Precision | None = None,
                 compile: bool | Mapping[str, Any] = False,
                 data_preprocessor: dict | None = None) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f'`prediction_type` must be one of {", ".join(PREDICTION_TYPES)}, got '
                             f'{prediction_type!r}; it is that of the backbone, named in its scheduler_config.json.')
        if timestep_density is not None and timestep_density.keys() != {'logit_mean', 'logit_std'}:
            raise ValueError('`timestep_density` takes logit_mean and logit_std, both or none at all, got '
                             f'{dict(timestep_density)}.')
        check_share('reference_dropout', reference_dropout)
        check_condition_guidance('reference', reference_guidance_scale, reference_dropout)
        schedule = complete_schedule(scheduler)
        sampling = build_sampler(sampler, schedule)
        super().__init__(
            network,
            latent_codec,
            label_codec,
            text_encoder,
            trainable=(dict(mask='frozen') if legacy else {}) | dict(trainable or {}),
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
        if legacy and not isinstance(self.label_codec, IdCodec):
            raise ValueError('`legacy=True` is the released encoding of masks, class id / 255: it needs '
                             "label_codec=dict(type='mmsynth.IdCodec', ...), got "
                             f'{type(self.label_codec).__name__}. Change the codec, or leave `legacy` out.')
        self.reference_dropout = reference_dropout
        self.reference_guidance_scale = reference_guidance_scale
        self.reference_guidance_interval = check_interval('reference_guidance_interval', reference_guidance_interval)
        self.legacy = legacy
        self.prediction_type = prediction_type
        self.timestep_density = timestep_density
        self.scheduler = DDPMScheduler(**schedule)
        self.sampler = sampling

    def loss(self, inputs: Tensor, data_samples: list[SynthDataSample]) -> dict[str, Tensor]:
        """Denoising loss ``‖eps_hat - eps‖²``, averaged (DDPM, arXiv 2006.11239, equation 14), or that of a velocity.

        Args:
            inputs: Images (B, 3, H, W), float, [-1, 1], RGB.
            data_samples: With masks, prompts and references.
        """
        rng = self._training_rng()
        clean = self.latent_codec.encode(inputs, generator=rng).float()
        prompts = self._drop_prompts(data_samples, rng)
        masks = self._drop_masks(stack_masks(data_samples, inputs.device), rng)
        latents = self._encode_references(data_samples)
        if self.reference_dropout:
            dropped = torch.rand(len(latents), generator=rng) < self.reference_dropout
            latents = latents.masked_fill(dropped.to(latents.device)[:, None, None, None], 0.0)
        condition = self.encode_condition(prompts, masks, latents)
        timestep = self._draw_timesteps(len(clean), rng).to(clean.device)
        noise = torch.randn(clean.shape, generator=rng).to(clean.device)
        predicted = self._predict(self.scheduler.add_noise(clean, noise, timestep), timestep, condition)
        if self.prediction_type == 'epsilon':
            return dict(loss_noise=F.mse_loss(predicted, noise))
        return dict(loss_velocity=F.mse_loss(predicted, self.scheduler.get_velocity(clean, noise, timestep)))

    def sample_latents(self, data_samples: Sequence[SynthDataSample], masks: Tensor, seeds: Sequence[int], *,
                       guidance: Guidance | None,
                       on_step_end: StepEnd | None = None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """As in :class:`BaseGenerator`: denoising from each sample's own noise, given its reference too."""
        shape = self.latent_codec.latent_shape(*masks.shape[-2:])
        prompts = [prompt_of(sample) for sample in data_samples]
        latents = self._encode_references(data_samples)
        condition = self.encode_condition(prompts, masks, latents)
        negatives = []
        if self.guidance_scale != 1:
            empty = self._encode_prompts(['']).prompt_embeds.expand_as(condition.prompt_embeds)
            negatives.append(Negative(replace(condition, prompt_embeds=empty), self.guidance_scale,
                                      self.guidance_interval))
        if self.mask_guidance_scale != 1:
            null = self._encode_masks(torch.full_like(masks, IGNORE_INDEX))
            negatives.append(Negative(replace(condition, mask_hint=null), self.mask_guidance_scale,
                                      self.mask_guidance_interval))
        if self.reference_guidance_scale != 1:
            null = self._hint_of_references(torch.zeros_like(latents))
            negatives.append(Negative(replace(condition, reference_hint=null), self.reference_guidance_scale,
                                      self.reference_guidance_interval))
        predict = classifier_free(self._noise, condition, negatives, self._sigma)
        return self._run(predict, self.sampler, shape, masks, seeds, guidance, on_step_end)

    def encode_condition(self, prompts: Sequence[str], masks: Tensor, reference_latents: Tensor) -> Condition:
        """Encode prompts, masks (B, H, W) and reference latents (B, C, h, w) for the network."""
        return Condition(
            prompt_embeds=self._encode_prompts(prompts).prompt_embeds,
            mask_hint=self._encode_masks(masks),
            reference_hint=self._hint_of_references(reference_latents))

    def _encode_masks(self, masks: Tensor) -> Tensor:
        with self.computing():
            return self.network.encode_mask(self.label_codec.encode(masks))

    def _hint_of_references(self, latents: Tensor) -> Tensor:
        with self.computing():
            return self.network.encode_reference(latents)

    def _draw_timesteps(self, count: int, rng: torch.Generator) -> Tensor:
        total = self.scheduler.config.num_train_timesteps
        if self.timestep_density is None:
            return torch.randint(total, (count, ), generator=rng)
        share = compute_density_for_timestep_sampling(
            'logit_normal', count, generator=rng, **self.timestep_density)
        return (share * total).long().clamp_max(total - 1)

    def _check_channels(self) -> None:
        super()._check_channels()
        if self.label_codec.patch_size != 1:
            raise ValueError(f'`label_codec.patch_size` must be 1, got {self.label_codec.patch_size}: the mask branch '
                             'reads masks pixel by pixel.')
        if self.network.mask_factor != self.latent_codec.factor:
            raise ValueError(f'`network.mask_factor` is {self.network.mask_factor}, `latent_codec` '
                             f'({type(self.latent_codec).__name__}) has {self.latent_codec.factor} pixels per latent '
                             f'cell; set it to {self.latent_codec.factor}.')

    def _noise(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The predicted noise, whatever the network predicts."""
        predicted = self._predict(latents, timestep, condition)
        if self.prediction_type == 'epsilon':
            return predicted
        return noise_of_velocity(predicted, latents, timestep, self.scheduler.alphas_cumprod)

    def _predict(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        with self.computing():
            return self.network(latents, timestep, condition.prompt_embeds, condition.mask_hint,
                                condition.reference_hint).float()

    def _sigma(self, timestep: Tensor) -> float:
        """The noise level of a timestep (B,) that all samples share."""
        return float((1 - self.scheduler.alphas_cumprod[int(timestep[0])]).sqrt())

    def _encode_references(self, data_samples: Sequence[SynthDataSample]) -> Tensor:
        """The latents (B, C, h, w) of the references, each of the size of its mask.

        They are the codec's mean, so that a sample depends on its own seed only.
        """
        references = torch.stack([_reference(sample) for sample in data_samples]).to(self.device)
        return self.latent_codec.encode(references).float()


def _reference(sample: SynthDataSample) -> Tensor:
    name = sample.get('sample_id', '?')
    if 'reference' not in sample:
        raise ValueError(f"sample {name} has no reference image; add to the pipeline of the dataset, before "
                         "PackSynthInputs, dict(type='mmsynth.ReferenceAugment') for training, or for synthesis "
                         "dict(type='mmsynth.PickReference', folder=...), or LoadReference and FitReference if its "
                         "manifest has 'ref_image'.")
    reference, size = sample.reference.data, sample.gt_sem_seg.data.shape[-2:]
    if not reference.is_floating_point():
        raise ValueError(f'the reference of sample {name} must be float in [-1, 1], got {reference.dtype}; pass the '
                         'samples through the generator\'s `data_preprocessor` first.')
    if reference.shape[-2:] != size:
        raise ValueError(f'the reference of sample {name} is {reference.shape[-2]} x {reference.shape[-1]}, its mask '
                         f"{size[0]} x {size[1]} (height x width); add dict(type='mmsynth.FitReference') after "
                         'LoadReference in the pipeline of the dataset.')
    return reference
