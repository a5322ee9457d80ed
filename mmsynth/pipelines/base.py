"""What the pipelines share: loading, saving, and one call that samples by the generator's own code.

A pipeline holds the components. A generator (:mod:`mmsynth.models.generators`) is put around them, and generates as it
does for mmseg: the same conditions, schedulers, loop and guidance.

Legend: B batch, C latent channels, h w latent cells, H W pixels.
"""
import copy
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mmsynth.apis.inference import Picture, make_samples
from mmsynth.guidance import Critic, Guidance
from mmsynth.models import BaseGenerator, SynthDataPreprocessor, VAECodec
from mmsynth.models.encoders import LatentCodec, TextEncoder
from mmsynth.models.encoders.text_encoders import is_hub_id
from mmsynth.models.generators.checks import check_condition_guidance, check_run
from mmsynth.models.precision import DTYPES
from mmsynth.pipelines.components import as_component, describe_label_codec
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample

OUTPUT_TYPES = ('pil', 'np', 'pt', 'latent')
# What a pipeline's folder is made of: data, no code
_HUB_FILES = ['model_index.json', '*/*.json', '*/*.safetensors', '*/*.txt', '*/*.model']
_HUB_OPTIONS = ('cache_dir', 'force_download', 'local_files_only', 'revision', 'token')
_RUNS_CODE = ('custom_pipeline', 'custom_revision', 'trust_remote_code')
_PICTURES = (np.ndarray, Image.Image, Tensor)  # the classes of a Picture
OnStepEnd = Callable[['SynthPipeline', int, Tensor, dict[str, Tensor]], Mapping[str, Tensor] | None]


@dataclass
class SynthPipelineOutput(BaseOutput):
    """What a pipeline gives.

    Attributes:
        images: B images: PIL pictures, an array (B, H, W, 3) or a tensor (B, 3, H, W), float, [0, 1]; or the latents
            (B, C, h, w) that they would be decoded from.
        traces: What guidance did, per sample one record for each step that it corrected; empty without guidance.
    """

    images: list[Image.Image] | NDArray[np.float32] | Tensor
    traces: list[list[dict[str, float]]]


class SynthPipeline(DiffusionPipeline):
    """Base of the pipelines: images for masks.

    Subclasses name their components in ``__init__`` and hand them to :meth:`_set_up`.

    Attributes:
        network_name: What the network is called among the components.
        kinds: For each component the classes that a folder may name for it, with the library that has them.
        setting_names: The options of the generator that ``settings`` may hold.
    """

    network_name: ClassVar[str]
    kinds: ClassVar[Mapping[str, tuple[str, ...]]]
    setting_names: ClassVar[tuple[str, ...]] = (
        'num_steps', 'guidance_scale', 'guidance_interval', 'mask_guidance_scale', 'mask_guidance_interval',
        'mask_dropout')
    _fixed_names: ClassVar[tuple[str, ...]] = ()  # settings that a call cannot change: they are the network's

    # ---- folders

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> 'SynthPipeline':
        """Load a pipeline; nothing in its folder is ever run.

        Args:
            pretrained_model_name_or_path: A folder that :meth:`save_pretrained` or ``tools/convert_checkpoint.py --to
                pipeline`` wrote, or a hub id.
            **options: Those of ``DiffusionPipeline.from_pretrained``, such as ``torch_dtype``, ``revision``, or a
                component of your own by its name.

        Raises:
            ValueError: If the folder is no pipeline of this class, names components that it does not have, or holds
                Python files; or an option would run code or read pickles.
            FileNotFoundError: If there is no such folder, or it has no ``model_index.json``.
        """
        wrong = [name for name in _RUNS_CODE if options.get(name)]
        if wrong or options.setdefault('use_safetensors', True) is not True:
            raise ValueError(f'`{(wrong or ["use_safetensors"])[0]}`: a folder of {cls.__name__} holds data and '
                             'safetensors only, and nothing from outside is run; leave the option out.')
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if not is_hub_id(str(pretrained_model_name_or_path)):
                raise FileNotFoundError(f'no folder {folder}, and it is no hub id of the form owner/name.')
            hub = {name: options.pop(name) for name in _HUB_OPTIONS if name in options}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=_HUB_FILES, **hub))
        cls._check_folder(folder, given=set(options))
        return super().from_pretrained(str(folder), **options)

    @classmethod
    def from_generator(cls, generator: BaseGenerator) -> 'SynthPipeline':
        """Make a pipeline of a generator, such as :func:`mmsynth.apis.init_generator` gives; they share the tensors.

        Raises:
            ValueError: If it is of another kind, has LoRA that is not merged, or parts that a pipeline cannot have.
        """
        cls._check_generator(generator)
        if generator.has_lora:
            raise ValueError('the generator has LoRA, and a pipeline plain weights: call `generator.merge_lora()` '
                             'first, or convert with --merge-lora.')
        codec = generator.latent_codec
        vae = codec.vae if type(codec) is VAECodec else as_component(codec, 'latent_codec')
        text, text_settings = cls._text_components(generator.text_encoder)
        names = [*cls.setting_names, *cls._fixed_names]
        settings = {name: getattr(generator, name) for name in names} | text_settings
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        classes = (getattr(generator, 'dataset_meta', None) or {}).get('classes')
        settings['classes'] = None if classes is None else list(classes)
        return cls(**{cls.network_name: as_component(generator.network, 'network')}, vae=vae, **text,
                   scheduler=copy.deepcopy(generator.sampler), settings=settings,
                   label_codec=describe_label_codec(generator.label_codec))

    @classmethod
    @abstractmethod
    def _check_generator(cls, generator: BaseGenerator) -> None:
        """Raise ValueError if a generator is not of the pipeline's kind."""

    @classmethod
    @abstractmethod
    def _text_components(cls, encoder: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
        """The components of a generator's text encoder, and what settings it needs."""

    @classmethod
    def _check_folder(cls, folder: Path, given: set[str]) -> None:
        """Check a folder before diffusers reads it; components that are ``given`` are not looked at."""
        index = folder / cls.config_name
        if not index.is_file():
            raise FileNotFoundError(f'{folder} has no {cls.config_name}: it is no pipeline. Write one with '
                                    'tools/convert_checkpoint.py --to pipeline.')
        content = json.loads(index.read_text(encoding='utf-8'))
        if content.get('_class_name') != cls.__name__:
            raise ValueError(f'{index}: `_class_name` is {content.get("_class_name")!r}, and {cls.__name__} loads its '
                             'own folders only; use the class that it names.')
        parts = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
        unknown = parts.keys() - cls.kinds.keys()
        if unknown:
            raise ValueError(f'{index}: unknown component {", ".join(sorted(unknown))}; a {cls.__name__} has '
                             f'{", ".join(cls.kinds)}.')
        for name, kind in parts.items():
            full_name = '.'.join(map(str, kind))
            if name not in given and kind[1] is not None and full_name not in cls.kinds[name]:
                raise ValueError(f'{index}: the component `{name}` is {full_name}; it can be '
                                 f'{", ".join(cls.kinds[name])}. Give one of your own as from_pretrained(…, {name}=…).')
        scripts = [path.name for part in ('.', *parts) for path in (folder / part).glob('*.py')]
        if scripts:  # earlier releases of diffusers run such files without asking
            raise ValueError(f'{folder} holds {", ".join(scripts)}: a pipeline is data, and no file of it is run. Take '
                             'the file away if you trust the rest.')

    # ---- the generator around the components

    def _set_up(self, parts: Mapping[str, Any], label_codec: Mapping[str, Any] | None,
                settings: Mapping[str, Any] | None) -> None:
        """Register the components, and build the generator around them.

        Raises:
            ValueError: If a setting is unknown, or parts do not fit each other.
        """
        settings = dict(settings or {})
        known = {*self.setting_names, *self._fixed_names, 'classes', 'max_sequence_length'}
        if settings.keys() - known:
            raise ValueError(f'`settings` of {type(self).__name__} does not know '
                             f'{", ".join(sorted(settings.keys() - known))}; it takes {", ".join(sorted(known))}.')
        if label_codec is None:
            raise ValueError("`label_codec` is missing: its settings, such as dict(type='GreyLevelCodec', "
                             'num_classes=7).')
        self.register_modules(**parts)
        self.register_to_config(label_codec=dict(label_codec), settings=dict(settings))
        self.classes: Sequence[str] | None = settings.pop('classes', None)
        self._max_sequence_length: int = settings.pop('max_sequence_length', 256)
        self._generator = self._build_generator(label_codec, settings)

    @abstractmethod
    def _build_generator(self, label_codec: Mapping[str, Any], settings: Mapping[str, Any]) -> BaseGenerator:
        """The generator of the components as they are loaded; nothing of it trains."""

    @abstractmethod
    def _check_scheduler(self, scheduler: SchedulerMixin) -> None:
        """Raise ValueError for a scheduler that the network cannot be sampled with."""

    @abstractmethod
    def _text_encoder(self) -> TextEncoder | None:
        """The text encoder around its components; None where there are none."""

    @property
    def num_classes(self) -> int:
        """Class count K; masks hold 0 … K - 1, and 255 where unlabelled."""
        return self._generator.num_classes

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    def _latent_codec(self) -> LatentCodec:
        if isinstance(self.vae, AutoencoderKL):
            return VAECodec(vae=self.vae, gradient_checkpointing=self.vae.is_gradient_checkpointing)
        return self.vae

    def _generator_of_call(self, **settings: Any) -> BaseGenerator:
        """The generator with the components as they are now, and a call's own settings (None: the generator's)."""
        generator = copy.copy(self._generator)
        generator._modules = dict(generator._modules)  # its own: what follows is for one call
        network = getattr(self, self.network_name)
        generator.network, generator.latent_codec = network, self._latent_codec()
        generator.sampler = self.scheduler
        generator.execution_device = self._execution_device
        generator.label_codec.to(generator.execution_device)
        generator.dtype = next((name for name, dtype in DTYPES.items() if dtype == network.dtype), None)
        for name, value in settings.items():
            if value is not None and name not in self.setting_names:
                raise ValueError(f'`{name}` has no effect: a {type(self).__name__} has none. Leave it out.')
            if value is not None:
                setattr(generator, name, value)
            if value is not None and name in ('mask_guidance_scale', 'reference_guidance_scale'):
                part = name.split('_')[0]
                check_condition_guidance(part, value, getattr(generator, f'{part}_dropout'))
        check_run(generator.num_steps, generator.guidance_scale)
        self._check_scheduler(self.scheduler)
        text_encoder = self._text_encoder()
        if text_encoder is None:
            raise ValueError('the pipeline has no `text_encoder`, which reads prompts; give it one: '
                             'pipe.register_modules(text_encoder=…, tokenizer=…).')
        generator.text_encoder = text_encoder
        return generator

    # ---- the call

    @torch.no_grad()
    def __call__(self,
                 mask: Picture | Sequence[Picture],
                 prompt: str | Sequence[str] | None = None,
                 reference: Picture | Sequence[Picture] | None = None,
                 critic: Critic | None = None,
                 guidance: Guidance | Mapping[str, Any] | None = None,
                 num_inference_steps: int | None = None,
                 guidance_scale: float | None = None,
                 mask_guidance_scale: float | None = None,
                 reference_guidance_scale: float | None = None,
                 generator: torch.Generator | Sequence[torch.Generator] | None = None,
                 callback_on_step_end: OnStepEnd | None = None,
                 output_type: str = 'pil',
                 return_dict: bool = True) -> SynthPipelineOutput | tuple:
        """Generate an image for each mask.

        Args:
            mask: Class ids (H, W), 255 where unlabelled: an array, a tensor or a picture of one channel; or a list of
                them, all of one size.
            prompt: For all masks, or a list of one for each; by default the names of the classes in the mask.
            reference: Of TISynth, whose look the images take over: RGB (h, w, 3), 0 to 255, of any size; one for all
                masks, or a list of one for each.
            critic: Guides: by :class:`~mmsynth.guidance.CRFM` with its defaults, if ``guidance`` says nothing else. Of
                :func:`mmsynth.apis.init_critic`, on the pipeline's device.
            guidance: A guidance with a critic of its own; or settings of one for ``critic``, such as
                ``dict(steps=10)`` of CRFM or ``dict(type='mmsynth.BestOfN', num_candidates=4)``.
            num_inference_steps, guidance_scale, mask_guidance_scale, reference_guidance_scale: In the place of those
                that the generator was converted with.
            generator: Where randomness comes from, one for all samples or a list of one for each. A new generator of
                seed s gives the image that mmsynth generates under the seed s.
            callback_on_step_end: Called after each step as ``callback(pipe, step_index, timestep, dict(latents=…))``,
                as in diffusers; the latents in what it returns are gone on with. Best-of-n runs several times.
            output_type: 'pil', 'np', 'pt' or 'latent', see :class:`SynthPipelineOutput`.
            return_dict: Return a :class:`SynthPipelineOutput`, otherwise a tuple (images, traces).

        Raises:
            ValueError: If counts, shapes, classes or options do not fit.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f'`output_type` must be one of {", ".join(OUTPUT_TYPES)}, got {output_type!r}.')
        run = self._generator_of_call(
            num_steps=num_inference_steps, guidance_scale=guidance_scale, mask_guidance_scale=mask_guidance_scale,
            reference_guidance_scale=reference_guidance_scale)
        guide = self._guide(critic, guidance, run.device)
        samples = self._samples(_as_list(mask), prompt, reference)
        seeds = draw_seeds(generator, len(samples))
        self._num_timesteps = run.num_steps
        with self.progress_bar(total=run.num_steps * getattr(guide, 'num_candidates', 1)) as bar:

            def on_step_end(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
                if callback_on_step_end is not None:
                    returned = callback_on_step_end(self, index, timestep, dict(latents=latents)) or {}
                    latents = _checked(returned.get('latents', latents), latents)
                bar.update()
                return latents

            latents, traces = run.generate_latents(samples, seeds, guidance=guide, on_step_end=on_step_end)
        if output_type == 'latent':
            images = latents
        else:
            decoded = run.latent_codec.decode(latents).float()
            images = VaeImageProcessor(do_resize=False).postprocess(decoded, output_type)
        self.maybe_free_model_hooks()
        return SynthPipelineOutput(images=images, traces=traces) if return_dict else (images, traces)

    def _samples(self, masks: Sequence[Picture], prompt: str | Sequence[str] | None,
                 reference: Picture | Sequence[Picture] | None) -> list[SynthDataSample]:
        """The generator's input for a call."""
        prompts = [prompt] * len(masks) if isinstance(prompt, str) else prompt
        if prompts is None and not self.classes:
            raise ValueError('`prompt` is needed: the pipeline does not know the names of its classes, of which it '
                             "would make one; give it, or the names: pipe.classes = ('road', …).")
        references = [reference] * len(masks) if isinstance(reference, _PICTURES) else reference
        data = SynthDataPreprocessor()(dict(data_samples=make_samples(masks, prompts, references, self.classes)))
        return data['data_samples']

    def _guide(self, critic: Critic | None, guidance: Guidance | Mapping[str, Any] | None,
               device: torch.device) -> Guidance | None:
        """The guidance of a call."""
        if isinstance(guidance, Guidance):
            if critic is not None:
                raise ValueError(f'`critic` has no effect: `guidance` is a {type(guidance).__name__} with a critic of '
                                 'its own. Leave one of them out, or give the settings of the guidance as a dict.')
            guide = guidance
        elif critic is None:
            if guidance is not None:
                raise ValueError(f'`guidance` {dict(guidance)} are settings of a guidance, which needs a `critic`.')
            return None
        elif not isinstance(critic, Critic):
            raise ValueError(f'`critic` must be what mmsynth.apis.init_critic returns, got {type(critic).__name__}; '
                             'wrap it: init_critic(model, num_classes=…).')
        else:
            guide = MODELS.build(dict(type='mmsynth.CRFM', critic=critic) | dict(guidance or {}))
        if guide.critic.device.type != device.type:
            raise ValueError(f'`critic` is on {guide.critic.device}, the pipeline computes on {device}; move it: '
                             f"critic.to('{device}').")
        return guide


def draw_seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """One seed per sample: the generator's own if nothing has been drawn of it yet, and else one that it draws.

    So a new generator of seed s stands for mmsynth's seed s, one that is used again gives other images, and one for
    several samples gives each its own.

    Raises:
        ValueError: If a list has another length than ``count``.
    """
    generators: list[torch.Generator | None] = (
        [generator] * count if generator is None or isinstance(generator, torch.Generator) else list(generator))
    if len(generators) != count:
        raise ValueError(f'`generator` must be one, or a list of one per mask, got {len(generators)} for {count} '
                         'masks.')
    return [_draw_seed(one) for one in generators]


def _draw_seed(generator: torch.Generator | None) -> int:
    if generator is None:
        return int(torch.randint(2**62, ()))
    own = generator.initial_seed()
    new = torch.Generator(generator.device).manual_seed(own)
    is_new = torch.equal(generator.get_state(), new.get_state())
    drawn = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return own if is_new else drawn


def _as_list(mask: Picture | Sequence[Picture]) -> list[Picture]:
    masks = [mask] if isinstance(mask, _PICTURES) else list(mask)
    if not masks:
        raise ValueError('`mask` must hold at least one mask, got none.')
    return masks


def _checked(latents: Tensor, before: Tensor) -> Tensor:
    if latents.shape != before.shape:
        raise ValueError(f'`callback_on_step_end` returned latents of the shape {tuple(latents.shape)}, they were '
                         f'{tuple(before.shape)}; it may change values only.')
    return latents

