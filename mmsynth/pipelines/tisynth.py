"""TISynth (Information Fusion, 10.1016/j.inffus.2025.103839) as a diffusers pipeline."""
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import AutoencoderKL, SchedulerMixin
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

from mmsynth.apis.inference import Picture
from mmsynth.models import BaseGenerator, ControlledUNet, TISynth
from mmsynth.models.encoders import CLIPTextEncoder, TextEncoder
from mmsynth.pipelines.base import SynthPipeline
from mmsynth.pipelines.components import Component, ControlledUNetModel, as_component, build_label_codec
from mmsynth.sampling import SAMPLERS, check_sampler
from mmsynth.sampling.schedulers import STABLE_DIFFUSION_SCHEDULE
from mmsynth.structures import SynthDataSample

_OWN = 'mmsynth.pipelines.components'


class TISynthPipeline(SynthPipeline):
    """Images with the layout of a mask and the appearance of a reference image.

    Args:
        unet: The network.
        vae: Latent codec: diffusers' VAE, or a codec that is a component.
        scheduler: One of :data:`~mmsynth.sampling.SAMPLERS`, on the network's training schedule.
        text_encoder: What reads prompts by itself: learned class names or a table of prompts, or any
            :class:`~mmsynth.models.encoders.TextEncoder`; or Stable Diffusion 1.5's CLIP.
        tokenizer: Of CLIP.
        label_codec: Settings of the label codec, ``type`` and its arguments.
        settings: Of sampling, as :class:`~mmsynth.TISynth` calls them, and what the network was trained to predict;
            ``classes``, the names for default prompts.

    Raises:
        ValueError: If a setting is unknown, or parts do not fit each other.
    """

    network_name: ClassVar[str] = 'unet'
    kinds: ClassVar[Mapping[str, tuple[str, ...]]] = dict(
        unet=(f'{_OWN}.ControlledUNetModel', ),
        vae=('diffusers.AutoencoderKL', f'{_OWN}.PatchPCACodecModel', f'{_OWN}.AutoencoderCodecModel'),
        scheduler=tuple(f'diffusers.{name}' for name in SAMPLERS),
        text_encoder=(f'{_OWN}.ClassNameEmbeddingModel', f'{_OWN}.PromptTable', 'transformers.CLIPTextModel'),
        tokenizer=('transformers.CLIPTokenizer', 'transformers.CLIPTokenizerFast'))
    setting_names: ClassVar[tuple[str, ...]] = SynthPipeline.setting_names + (
        'reference_guidance_scale', 'reference_guidance_interval', 'reference_dropout')
    _fixed_names: ClassVar[tuple[str, ...]] = ('prediction_type', 'legacy')
    # The VAE is not in the chain: under guidance it decodes at every step, and would send the network away each time
    model_cpu_offload_seq = 'text_encoder->unet'
    _optional_components = ['text_encoder', 'tokenizer']

    def __init__(self,
                 unet: ControlledUNetModel,
                 vae: AutoencoderKL | Component,
                 scheduler: SchedulerMixin,
                 text_encoder: TextEncoder | CLIPTextModel | None = None,
                 tokenizer: CLIPTokenizer | None = None,
                 label_codec: dict | None = None,
                 settings: dict | None = None) -> None:
        super().__init__()
        self._set_up(dict(unet=unet, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer),
                     label_codec, settings)

    @classmethod
    def _check_generator(cls, generator: BaseGenerator) -> None:
        if not isinstance(generator, TISynth) or type(generator.network) is not ControlledUNet:
            network = type(getattr(generator, 'network', None)).__name__
            raise ValueError('a TISynthPipeline is made of a TISynth with a ControlledUNet, got '
                             f'{type(generator).__name__} with {network}.')

    @classmethod
    def _text_components(cls, encoder: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
        if isinstance(encoder, CLIPTextEncoder):
            return encoder.parts, {}
        return dict(text_encoder=as_component(encoder, 'text_encoder')), {}

    def _build_generator(self, label_codec: Mapping[str, Any], settings: Mapping[str, Any]) -> TISynth:
        config = self.scheduler.config
        schedule = {key: config[key] for key in STABLE_DIFFUSION_SCHEDULE if key in config}
        return TISynth(self.unet, self._latent_codec(), build_label_codec(label_codec),
                       self._text_encoder() or TextEncoder(),
                       scheduler=schedule, trainable=dict.fromkeys(TISynth.branches, 'frozen'), **settings).eval()

    def _check_scheduler(self, scheduler: SchedulerMixin) -> None:
        check_sampler(scheduler)

    def _text_encoder(self) -> TextEncoder | None:
        if not isinstance(self.text_encoder, PreTrainedModel):
            return self.text_encoder
        return CLIPTextEncoder(built=(self.text_encoder, self.tokenizer))

    def _samples(self, masks: Sequence[Picture], prompt: str | Sequence[str] | None,
                 reference: Picture | Sequence[Picture] | None) -> list[SynthDataSample]:
        if reference is None:
            raise ValueError('`reference` is missing: a TISynthPipeline takes the look of its images from one, RGB '
                             '(h, w, 3), uint8, such as an image of the domain to generate for.')
        return super()._samples(masks, prompt, reference)
