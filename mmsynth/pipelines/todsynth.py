"""TODSynth (arXiv 2512.16740) as a diffusers pipeline."""
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusion3Pipeline
from torch import nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    T5EncoderModel,
    T5TokenizerFast,
)

from mmsynth.apis.inference import Picture
from mmsynth.models import BaseGenerator, MMDiT, TODSynth
from mmsynth.models.encoders import SD3TextEncoder, TextEncoder
from mmsynth.pipelines.base import SynthPipeline
from mmsynth.pipelines.components import Component, MMDiTModel, as_component, build_label_codec
from mmsynth.sampling import FLOW_SAMPLERS, check_flow_sampler
from mmsynth.structures import SynthDataSample

_OWN = 'mmsynth.pipelines.components'
_CLIP, _CLIP_TOKENIZERS = 'transformers.CLIPTextModelWithProjection', (
    'transformers.CLIPTokenizer', 'transformers.CLIPTokenizerFast')


class TODSynthPipeline(SynthPipeline):
    """Images for masks and prompts, by an MM-DiT that the mask steers.

    Args:
        transformer: The network.
        vae: Latent codec: diffusers' VAE, or a codec that is a component.
        scheduler: One of :data:`~mmsynth.sampling.FLOW_SAMPLERS`.
        text_encoder: What reads prompts by itself: learned class names or a table of prompts, or any
            :class:`~mmsynth.models.encoders.TextEncoder`; or the first of Stable Diffusion 3's encoders.
        tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3: Stable Diffusion 3's others. Without
            ``text_encoder_3``, T5, its part of the embeddings is zeros.
        label_codec: Settings of the label codec, ``type`` and its arguments.
        settings: Of sampling, as :class:`~mmsynth.TODSynth` calls them; ``classes``, the names for default prompts;
            ``max_sequence_length`` of T5's tokens.

    Raises:
        ValueError: If a setting is unknown, or parts do not fit each other.
    """

    network_name: ClassVar[str] = 'transformer'
    kinds: ClassVar[Mapping[str, tuple[str, ...]]] = dict(
        transformer=(f'{_OWN}.MMDiTModel', ),
        vae=('diffusers.AutoencoderKL', f'{_OWN}.PatchPCACodecModel', f'{_OWN}.AutoencoderCodecModel'),
        scheduler=tuple(f'diffusers.{name}' for name in FLOW_SAMPLERS),
        text_encoder=(f'{_OWN}.ClassNameEmbeddingModel', f'{_OWN}.PromptTable', _CLIP),
        tokenizer=_CLIP_TOKENIZERS,
        text_encoder_2=(_CLIP, ),
        tokenizer_2=_CLIP_TOKENIZERS,
        text_encoder_3=('transformers.T5EncoderModel', ),
        tokenizer_3=('transformers.T5Tokenizer', 'transformers.T5TokenizerFast'))
    # The VAE is not in the chain: under guidance it decodes at every step, and would send the network away each time
    model_cpu_offload_seq = 'text_encoder->text_encoder_2->text_encoder_3->transformer'
    _optional_components = ['text_encoder', 'tokenizer', 'text_encoder_2', 'tokenizer_2', 'text_encoder_3',
                            'tokenizer_3']

    def __init__(self,
                 transformer: MMDiTModel,
                 vae: AutoencoderKL | Component,
                 scheduler: SchedulerMixin,
                 text_encoder: TextEncoder | CLIPTextModelWithProjection | None = None,
                 tokenizer: CLIPTokenizer | None = None,
                 text_encoder_2: CLIPTextModelWithProjection | None = None,
                 tokenizer_2: CLIPTokenizer | None = None,
                 text_encoder_3: T5EncoderModel | None = None,
                 tokenizer_3: T5TokenizerFast | None = None,
                 label_codec: dict | None = None,
                 settings: dict | None = None) -> None:
        super().__init__()
        self._set_up(
            dict(transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer,
                 text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2, text_encoder_3=text_encoder_3,
                 tokenizer_3=tokenizer_3), label_codec, settings)

    @classmethod
    def _check_generator(cls, generator: BaseGenerator) -> None:
        if not isinstance(generator, TODSynth) or type(generator.network) is not MMDiT:
            network = type(getattr(generator, 'network', None)).__name__
            raise ValueError(f'a TODSynthPipeline is made of a TODSynth with an MMDiT, got {type(generator).__name__} '
                             f'with {network}. A ControlNet of diffusers has a pipeline there.')

    @classmethod
    def _text_components(cls, encoder: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
        if isinstance(encoder, SD3TextEncoder):
            return encoder.parts, dict(max_sequence_length=encoder.max_sequence_length)
        return dict(text_encoder=as_component(encoder, 'text_encoder')), {}

    def _build_generator(self, label_codec: Mapping[str, Any], settings: Mapping[str, Any]) -> TODSynth:
        return TODSynth(self.transformer, self._latent_codec(), build_label_codec(label_codec),
                        self._text_encoder() or TextEncoder(),
                        trainable=dict.fromkeys(TODSynth.branches, 'frozen'), **settings).eval()

    def _check_scheduler(self, scheduler: SchedulerMixin) -> None:
        check_flow_sampler(scheduler)

    def _text_encoder(self) -> TextEncoder | None:
        if not isinstance(self.text_encoder, PreTrainedModel):
            return self.text_encoder
        parts = {name: getattr(self, name) for name in self._optional_components}
        # the trunk tells how wide the embeddings are where T5 is left out
        stable_diffusion = StableDiffusion3Pipeline(
            transformer=self.transformer.trunk, vae=None, scheduler=self.scheduler, **parts)
        return SD3TextEncoder(max_sequence_length=self._max_sequence_length, built=stable_diffusion)

    def _samples(self, masks: Sequence[Picture], prompt: str | Sequence[str] | None,
                 reference: Picture | Sequence[Picture] | None) -> list[SynthDataSample]:
        if reference is not None:
            raise ValueError('`reference` has no effect: a TODSynthPipeline takes a mask and a prompt. Leave it out, '
                             'or use a TISynthPipeline.')
        return super()._samples(masks, prompt, None)
