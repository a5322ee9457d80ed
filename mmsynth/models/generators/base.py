"""What every generator shares: its parts, what of them trains, dispatch of loss / predict, synthesis of a batch."""
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import SchedulerMixin
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmsynth.guidance.base import Guidance
from mmsynth.models.backbone import keep_in_checkpoints, leave_out_backbone
from mmsynth.models.encoders import LatentCodec, TextEmbeds, TextEncoder
from mmsynth.models.generators.checks import check_condition_guidance, check_interval, check_run, check_share
from mmsynth.models.generators.training_randomness import TrainingRandomness
from mmsynth.models.label_codecs import LabelCodec
from mmsynth.models.lora import LoRASettings, add_lora, merge_lora
from mmsynth.models.precision import DTYPES, Precision, check_precision, dtype_on
from mmsynth.registry import MODELS
from mmsynth.sampling import Predict, StepEnd, sample
from mmsynth.structures import SynthDataSample
from mmsynth.utils import derive_seed, seeded_noise
from mmsynth.utils.labels import IGNORE_INDEX

TRAINABLE_STATES = ('full', 'lora', 'frozen')
Part = TypeVar('Part')


class BaseGenerator(BaseModel):
    """A model that generates images for masks.

    Subclasses give :meth:`loss` (training) and :meth:`sample_latents` (sampling); everything else is here. Checkpoints
    leave out the frozen tensors that a ``pretrained`` backbone holds (:mod:`mmsynth.models.backbone`).

    Args:
        network: A network that tells its ``latent_channels``, ``mask_channels`` and ``branch_parameters(branch)``, or
            its config.
        latent_codec: Latent codec, or its config; its channels are the network's.
        label_codec: Label codec, or its config; fixes the class count.
        text_encoder: A module with ``encode(prompts) -> (prompt_embeds, pooled_prompt_embeds)``, or its config.
        trainable: State of branches: 'full', 'lora' or 'frozen'; of those left out the one of ``branches``.
        lora: Settings of the branches that are 'lora', see :class:`~mmsynth.models.lora.LoRASettings`.
        prompt_dropout: Share of training prompts replaced by the empty one, in [0, 1].
        mask_dropout: Share of training masks replaced by the null mask, all of whose pixels are unlabelled, in [0, 1].
        num_steps: Sampling steps.
        guidance_scale: Strength of classifier-free guidance towards the prompt; 1 switches it off.
        guidance_interval: Lowest and highest sigma, in [0, 1], at which it acts.
        mask_guidance_scale: Strength of the mask, held against the null mask: 1 is off, above 1 it counts for more, 0
            leaves it out.
        mask_guidance_interval: Lowest and highest sigma at which that acts.
        dtype: What the network computes in: 'float32', 'bfloat16' or 'float16'; None for bfloat16 on a GPU that knows
            it, elsewhere float32. In training the weights that train stay in float32, frozen ones are held in a dtype
            that is named. None leaves the autocast of mmengine's ``AmpOptimWrapper`` alone, and 'float16' needs its
            scaling of the loss.
        compile: Compile the network: True, or options of :func:`torch.compile`. Decoders are not: the gradient of
            diffusers' VAE decoder, compiled, is 0.
        data_preprocessor: Config of a :class:`~mmsynth.models.SynthDataPreprocessor`.

    Attributes:
        branches: The network's branches and their default states.
        execution_device: Where the network computes, if its weights are kept elsewhere and brought there when they are
            needed (accelerate's offloading); None where they are.

    Raises:
        ValueError: If an option is out of range, codecs and network do not fit each other, or LoRA finds no layer.
    """

    branches: ClassVar[Mapping[str, str]]
    network: Any  # of which class, subclasses say
    execution_device: torch.device | None = None

    def __init__(self, network: nn.Module | dict, latent_codec: LatentCodec | dict, label_codec: LabelCodec | dict,
                 text_encoder: TextEncoder | dict, *, trainable: Mapping[str, str] | None,
                 lora: Mapping[str, Any] | None, prompt_dropout: float, mask_dropout: float, num_steps: int,
                 guidance_scale: float, guidance_interval: Sequence[float], mask_guidance_scale: float,
                 mask_guidance_interval: Sequence[float], dtype: Precision | None, compile: bool | Mapping[str, Any],
                 data_preprocessor: dict | None) -> None:
        check_precision(dtype)
        check_share('prompt_dropout', prompt_dropout)
        check_share('mask_dropout', mask_dropout)
        check_condition_guidance('mask', mask_guidance_scale, mask_dropout)
        check_run(num_steps, guidance_scale)
        states = _check_trainable(trainable or {}, lora, self.branches)
        lora_settings = LoRASettings(**(lora or {}))
        super().__init__(data_preprocessor or dict(type='mmsynth.SynthDataPreprocessor'))
        self._trainable = states
        self.latent_codec: LatentCodec = build(latent_codec)
        self.label_codec: LabelCodec = build(label_codec)
        self.network = build(network)
        self.text_encoder: TextEncoder = build(text_encoder)
        self.prompt_dropout = prompt_dropout
        self.mask_dropout = mask_dropout
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.guidance_interval = check_interval('guidance_interval', guidance_interval)
        self.mask_guidance_scale = mask_guidance_scale
        self.mask_guidance_interval = check_interval('mask_guidance_interval', mask_guidance_interval)
        self.dtype = dtype
        self._training_rng = TrainingRandomness()
        self._check_channels()
        self._set_trainable(lora_settings)
        leave_out_backbone(self)
        if compile:
            self.network.compile(**({} if compile is True else compile))

    @property
    def num_classes(self) -> int:
        return self.label_codec.num_classes

    def forward(self,
                inputs: Tensor | None,
                data_samples: list[SynthDataSample],
                mode: str = 'predict') -> dict[str, Tensor] | list[SynthDataSample]:
        """Dispatch, as every mmengine model does.

        Args:
            inputs: Images (B, 3, H, W), float, [-1, 1], RGB; None where only masks are given.
            data_samples: One per image, with ``gt_sem_seg`` and the metainfo ``prompt``.
            mode: 'loss' or 'predict'.

        Raises:
            ValueError: For another mode, or a loss without images.
        """
        if mode == 'loss':
            if inputs is None:
                raise ValueError('training needs images, and the batch has none: load them in the pipeline of the data '
                                 "set, with dict(type='LoadImageFromFile').")
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise ValueError(f"`mode` must be 'loss' or 'predict', got {mode!r}.")

    @abstractmethod
    def loss(self, inputs: Tensor, data_samples: list[SynthDataSample]) -> dict[str, Tensor]:
        """The training losses of a batch."""

    @abstractmethod
    def sample_latents(self, data_samples: Sequence[SynthDataSample], masks: Tensor, seeds: Sequence[int], *,
                       guidance: Guidance | None,
                       on_step_end: StepEnd | None = None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """Latents (B, C, h, w) generated for masks (B, H, W), and the guidance records of each sample.

        ``on_step_end`` is that of :func:`mmsynth.sampling.sample`.
        """

    def predict(self, inputs: Tensor | None, data_samples: list[SynthDataSample]) -> list[SynthDataSample]:
        """Generate an image for every sample without task guidance; as in the host's validation loop.

        The seed is the metainfo ``seed``, or else a function of the sample's id, so that a validation generates the
        same images every time, whatever the batches, and no two of them from one noise.
        """
        del inputs
        return self.synthesize(data_samples, [_own_seed(sample) for sample in data_samples])

    @torch.no_grad()
    def synthesize(self,
                   data_samples: Sequence[SynthDataSample],
                   seeds: Sequence[int],
                   *,
                   guidance: Guidance | None = None) -> list[SynthDataSample]:
        """Generate an image for every sample's mask and prompt.

        Args:
            data_samples: Samples with ``gt_sem_seg`` (1, H, W) of one size and the metainfo ``prompt``.
            seeds: One per sample. A sample's image depends on its own seed, not on the batch it is in.
            guidance: Steers by the loss of a critic: corrects the steps, or chooses among candidates.

        Returns:
            The samples given, each with ``generated_img`` (3, H, W), uint8, RGB, and the metainfo ``seed``,
            ``guidance_trace`` and ``finite`` (False if the decoded image held NaN or infinity).

        Raises:
            ValueError: If counts or sizes differ, or the guidance does not fit the generator.
        """
        if len(seeds) != len(data_samples):
            raise ValueError(f'`seeds`: one per sample is needed, got {len(seeds)} for {len(data_samples)} samples.')
        latents, traces = self.generate_latents(data_samples, seeds, guidance=guidance)
        return hand_over(data_samples, self.latent_codec.decode(latents).float(), seeds, traces)

    @torch.no_grad()
    def generate_latents(self, data_samples: Sequence[SynthDataSample], seeds: Sequence[int], *,
                         guidance: Guidance | None = None,
                         on_step_end: StepEnd | None = None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """What :meth:`synthesize` decodes: latents (B, C, h, w), and the guidance records of each sample.

        ``on_step_end`` is that of :func:`mmsynth.sampling.sample`; best-of-n calls it in every candidate's run.
        """
        if guidance is not None:
            self.check_guidance(guidance)
        masks = stack_masks(data_samples, self.device)

        def run(seeds: Sequence[int]) -> tuple[Tensor, list[list[dict[str, float]]]]:
            return self.sample_latents(data_samples, masks, seeds, guidance=guidance, on_step_end=on_step_end)

        if guidance is None:
            return run(seeds)
        return guidance.run(run, seeds, self._decode_for_guidance, masks, num_steps=self.num_steps)

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise ValueError if a guidance does not fit the classes, the latents and the run of this generator."""
        codec = self.latent_codec
        guidance.check_fit(self.num_classes, channels=codec.channels, factor=codec.factor)
        guidance.check_run(self.num_steps)

    def computing(self) -> AbstractContextManager[None]:
        """The context that the network is called in: autocast to the ``dtype``."""
        device = self.device
        if self.dtype is None and torch.is_autocast_enabled(device.type):
            return nullcontext()
        dtype = dtype_on(self.dtype, device)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def cast_network(self, device: torch.device) -> None:
        """Hold the network's weights in the dtype that it computes in on a device, which is half of the memory. Only to
        generate: weights that train want float32."""
        self.network.to(dtype_on(self.dtype, device))

    def _decode_for_guidance(self, latents: Tensor) -> Tensor:
        with self.computing():
            return self.latent_codec.decode(latents).float()

    def _run(self, predict: Predict, scheduler: SchedulerMixin, shape: Sequence[int], masks: Tensor,
             seeds: Sequence[int], guidance: Guidance | None,
             on_step_end: StepEnd | None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """Sample latents of a shape (C, h, w), each from the noise of its own seed, corrected by the guidance."""
        def draw_noise(index: int, repetition: int) -> Tensor:
            own = [derive_seed(seed, 'recurrence', index, repetition) for seed in seeds]
            return seeded_noise(own, shape, device=masks.device)

        noise = seeded_noise(seeds, shape, device=masks.device)
        if guidance is None:
            return sample(predict, noise, scheduler, self.num_steps, on_step_end=on_step_end)
        return sample(predict, noise, scheduler, self.num_steps, guidance.bind(self._decode_for_guidance, masks),
                      recurrence=guidance.recurrence, draw_noise=draw_noise, on_step_end=on_step_end)

    @property
    def device(self) -> torch.device:
        return self.execution_device or next(self.parameters()).device

    def trainable_names(self) -> list[str]:
        """The names of the parameters that an optimizer would train."""
        return [name for name, value in self.named_parameters() if value.requires_grad]

    @property
    def control_channels(self) -> int:
        """Channels of the mask as the network is given it."""
        return self.label_codec.channels

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

    def _set_trainable(self, lora: LoRASettings) -> None:
        adapted = [branch for branch, state in self._trainable.items() if state == 'lora']
        if adapted:
            add_lora(self.network, adapted, lora)
        for branch, state in self._trainable.items():
            for name, parameter in self.network.branch_parameters(branch).items():
                parameter.requires_grad_(state == 'full' or state == 'lora' and 'lora_' in name)
        if self.dtype is not None:
            for parameter in self.network.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(DTYPES[self.dtype])

    def _check_channels(self) -> None:
        if self.latent_codec.channels != self.network.latent_channels:
            raise ValueError(f'`network` takes latents of {self.network.latent_channels} channels, `latent_codec` '
                             f'makes {self.latent_codec.channels}; set the trunk\'s or U-Net\'s `in_channels` to that, '
                             'or change the codec.')
        if self.control_channels != self.network.mask_channels:
            raise ValueError(f'`network.mask_channels` is {self.network.mask_channels}, `label_codec` '
                             f'({type(self.label_codec).__name__}) gives {self.control_channels}; set it to '
                             f'{self.control_channels}.')

    def _encode_prompts(self, prompts: Sequence[str]) -> TextEmbeds:
        embeds, dtype = self.text_encoder.encode(prompts), next(self.network.parameters()).dtype
        # an encoder may have another dtype and device
        return TextEmbeds(*(getattr(embeds, name).to(self.device, dtype) for name in TextEmbeds._fields))

    def _drop_masks(self, masks: Tensor, rng: torch.Generator) -> Tensor:
        """The masks (B, H, W), a share of them replaced by the null mask, for guidance towards the mask."""
        if not self.mask_dropout:
            return masks
        dropped = torch.rand(len(masks), generator=rng) < self.mask_dropout
        return masks.masked_fill(dropped.to(masks.device)[:, None, None], IGNORE_INDEX)

    def _drop_prompts(self, data_samples: Sequence[SynthDataSample], rng: torch.Generator) -> list[str]:
        """The prompts, a share of them replaced by the empty one, for classifier-free guidance."""
        dropped = torch.rand(len(data_samples), generator=rng) < self.prompt_dropout
        return ['' if drop else prompt_of(sample) for sample, drop in zip(data_samples, dropped)]


def build(module: Part | dict) -> Part:
    """Build a module from its config; a module stays as it is."""
    return MODELS.build(module) if isinstance(module, dict) else module


def hand_over(data_samples: Sequence[SynthDataSample], images: Tensor, seeds: Sequence[int],
              traces: Sequence[list[dict[str, float]]]) -> list[SynthDataSample]:
    """Give every sample its image of (B, 3, H, W), float, nominally [-1, 1], RGB; see :meth:`BaseGenerator.synthesize`.
    """
    finite = images.isfinite().flatten(1).all(1).tolist()
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    for data_sample, image, seed, trace, whole in zip(data_samples, pixels, seeds, traces, finite):
        data_sample.generated_img = PixelData(data=image)
        data_sample.set_metainfo(dict(seed=int(seed), guidance_trace=trace, finite=whole))
    return list(data_samples)


def stack_masks(data_samples: Sequence[SynthDataSample], device: torch.device) -> Tensor:
    """The masks of a batch (B, H, W), int64.

    Raises:
        ValueError: If they differ in size.
    """
    masks = [sample.gt_sem_seg.data.squeeze(0).long() for sample in data_samples]
    sizes = {tuple(mask.shape) for mask in masks}
    if len(sizes) > 1:
        raise ValueError(f'masks of one batch must have one size, got {sorted(sizes)}; resize or crop them in the '
                         'pipeline of the dataset.')
    return torch.stack(masks).to(device)


def prompt_of(sample: SynthDataSample) -> str:
    """The prompt of a sample.

    Raises:
        ValueError: If it has none.
    """
    if 'prompt' not in sample:
        raise ValueError(f"sample {sample.get('sample_id', '?')} has no prompt; add dict(type='mmsynth.BuildPrompt') "
                         'to the pipeline of the dataset, or prompts to its manifest.')
    return sample.prompt


def _own_seed(sample: SynthDataSample) -> int:
    if 'seed' in sample:
        return sample.seed
    names = (str(sample.get(key)) for key in ('sample_id', 'seg_map_path', 'img_path') if sample.get(key))
    return derive_seed(0, 'predict', next(names, ''))


def _check_trainable(trainable: Mapping[str, str], lora: Mapping[str, Any] | None,
                     branches: Mapping[str, str]) -> dict[str, str]:
    """The state of every branch, in the order of ``branches``."""
    unknown = trainable.keys() - branches.keys()
    wrong = {branch: state for branch, state in trainable.items() if state not in TRAINABLE_STATES}
    if unknown or wrong:
        raise ValueError(f'`trainable` takes the branches {", ".join(branches)}, each one of '
                         f'{", ".join(TRAINABLE_STATES)}; got {dict(trainable)}.')
    states = dict(branches) | dict(trainable)
    if lora is not None and 'lora' not in states.values():
        first = next(iter(branches))
        raise ValueError(f"`lora` has no effect: no branch of `trainable` is 'lora', got {states}. Set for example "
                         f"`trainable.{first}='lora'`, or leave `lora` out.")
    return states
