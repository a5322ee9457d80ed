"""What every generator shares: dispatch of loss / predict, branch freezing, and synthesis of a batch."""
from abc import abstractmethod
from collections.abc import Sequence

import torch
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from torch import Tensor

from mmsynth.guidance.base import Guidance
from mmsynth.models.encoders import LatentCodec
from mmsynth.models.label_codecs import LabelCodec
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample

TRAINABLE_STATES = ('full', 'lora', 'frozen')


class BaseGenerator(BaseModel):
    """A model that paints images for masks.

    Subclasses give :meth:`loss` (training) and :meth:`sample_latents` (sampling); everything else is here.

    Args:
        data_preprocessor: Config of a :class:`~mmsynth.models.SynthDataPreprocessor`.
        latent_codec: The latent codec, or its config.
        label_codec: The label codec, or its config.
        num_steps: Sampling steps.
        guidance_scale: Strength of classifier-free guidance; 1 switches it off.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(self, data_preprocessor: dict | None, latent_codec: LatentCodec | dict,
                 label_codec: LabelCodec | dict, num_steps: int, guidance_scale: float) -> None:
        if num_steps < 1 or guidance_scale < 1:
            raise ValueError('`num_steps` and `guidance_scale` must be at least 1, got '
                             f'{num_steps} and {guidance_scale}.')
        super().__init__(data_preprocessor or dict(type='mmsynth.SynthDataPreprocessor'))
        self.latent_codec: LatentCodec = build(latent_codec)
        self.label_codec: LabelCodec = build(label_codec)
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale

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
            ValueError: For another mode.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise ValueError(f"`mode` must be 'loss' or 'predict', got {mode!r}.")

    @abstractmethod
    def loss(self, inputs: Tensor, data_samples: list[SynthDataSample]) -> dict[str, Tensor]:
        """The training losses of a batch."""

    @abstractmethod
    def sample_latents(self, data_samples: Sequence[SynthDataSample], masks: Tensor, seeds: Sequence[int], *,
                       guidance: Guidance | None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        """Latents (B, C, h, w) painted for masks (B, H, W), and the guidance records of each sample."""

    def predict(self, inputs: Tensor | None, data_samples: list[SynthDataSample]) -> list[SynthDataSample]:
        """Paint an image for every sample without task guidance; the seed is the metainfo ``seed``, or 0."""
        del inputs
        return self.synthesize(data_samples, [sample.get('seed', 0) for sample in data_samples])

    @torch.no_grad()
    def synthesize(self,
                   data_samples: Sequence[SynthDataSample],
                   seeds: Sequence[int],
                   *,
                   guidance: Guidance | None = None) -> list[SynthDataSample]:
        """Paint an image for every sample's mask and prompt.

        Args:
            data_samples: Samples with ``gt_sem_seg`` (1, H, W) of one size and the metainfo ``prompt``.
            seeds: One per sample. A sample's image depends on its own seed, not on the batch it is in.
            guidance: Steers by the loss of a critic: corrects the steps, or chooses among candidates.

        Returns:
            The samples given, each with ``generated_img`` (3, H, W), uint8, RGB, and the metainfo ``seed`` and
            ``guidance_trace``.

        Raises:
            ValueError: If counts or sizes differ, or the guidance does not fit the generator.
        """
        if len(seeds) != len(data_samples):
            raise ValueError(f'`seeds`: one per sample is needed, got {len(seeds)} for {len(data_samples)} samples.')
        if guidance is not None:
            self.check_guidance(guidance)
        masks = stack_masks(data_samples, self.device)
        latents, traces = self._sample(data_samples, masks, seeds, guidance)
        images = ((self.latent_codec.decode(latents).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        for sample, image, seed, trace in zip(data_samples, images, seeds, traces):
            sample.generated_img = PixelData(data=image)
            sample.set_metainfo(dict(seed=int(seed), guidance_trace=trace))
        return list(data_samples)

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise ValueError if a guidance does not fit the classes, the latents and the run of this generator."""
        codec = self.latent_codec
        guidance.check_fit(self.num_classes, channels=codec.channels, factor=codec.factor)
        guidance.check_run(self.num_steps)

    def _sample(self, data_samples: Sequence[SynthDataSample], masks: Tensor, seeds: Sequence[int],
                guidance: Guidance | None) -> tuple[Tensor, list[list[dict[str, float]]]]:
        def sample(seeds: Sequence[int]) -> tuple[Tensor, list[list[dict[str, float]]]]:
            return self.sample_latents(data_samples, masks, seeds, guidance=guidance)

        if guidance is None:
            return sample(seeds)
        return guidance.run(sample, seeds, self.latent_codec.decode, masks, num_steps=self.num_steps)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def trainable_names(self) -> list[str]:
        """The names of the parameters that an optimizer would train."""
        return [name for name, value in self.named_parameters() if value.requires_grad]


def build(module: object) -> object:
    """Build a module from its config; a module stays as it is."""
    return MODELS.build(module) if isinstance(module, dict) else module


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
