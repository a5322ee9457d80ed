"""Models of mmagic as generators, from their own configs and checkpoints, and this package's for mmagic's loops.

A ControlNet (``ControlStableDiffusion``) is read into diffusers' modules and sampled as every generator here; mmagic
need not be installed. A translation model is mmagic's own code, see
:mod:`mmsynth.models.generators.mmagic_translation`.
"""
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
from diffusers import AutoencoderKL, ControlNetModel, SchedulerMixin, UNet2DConditionModel
from mmengine.config import Config
from torch import nn

from mmsynth.models.encoders import CLIPTextEncoder, VAECodec
from mmsynth.models.generators.base import BaseGenerator
from mmsynth.models.generators.controlnet import StableDiffusionControlNet
from mmsynth.models.generators.mmagic_translation import MMagicTranslation
from mmsynth.models.label_codecs import PaletteCodec
from mmsynth.models.networks.diffusers_controlnet import UNetControlNet
from mmsynth.models.precision import Precision
from mmsynth.registry import MODELS
from mmsynth.sampling.schedulers import SAMPLERS, STABLE_DIFFUSION_SCHEDULE
from mmsynth.utils.configs import find_config

# as mmagic's own `infer`
_DEFAULTS = dict(conditioning_scale=1.0, text_encoder=None, sampler=None, trainable=None, prompt_dropout=0.0,
                 num_steps=20, guidance_scale=7.5, mask_guidance_scale=1.0, dtype=None, compile=False)
# precision is the generator's, and weights come from the checkpoint
_NOT_OURS = ('type', 'dtype', 'torch_dtype', 'init_cfg')


@MODELS.register_module(name='MMagicGenerator')
def mmagic_generator(config: str | Path | Mapping[str, Any],
                     palette: Sequence[Sequence[int]],
                     checkpoint: str | Path | None = None,
                     channel_order: Literal['rgb', 'bgr'] | None = None,
                     conditioning_scale: float | None = None,
                     text_encoder: dict[str, Any] | None = None,
                     sampler: Mapping[str, Any] | None = None,
                     trainable: Mapping[str, str] | None = None,
                     prompt_dropout: float | None = None,
                     num_steps: int | None = None,
                     guidance_scale: float | None = None,
                     mask_guidance_scale: float | None = None,
                     dtype: Precision | None = None,
                     compile: bool | Mapping[str, Any] | None = None) -> BaseGenerator | MMagicTranslation:
    """Build a generator of a model of mmagic.

    Args:
        config: mmagic's config, or its path; its ``model`` is a ``ControlStableDiffusion`` or a translation model.
        palette: The colours (K, 3), RGB in [0, 255], that the model knows the classes by; black is unlabelled.
        checkpoint: mmagic's file of weights. It may be given to the tools instead, as every generator's: a pool then
            notes its hash, and online mixing takes it.
        channel_order: Of the images that a translation model was trained with. By default what its data preprocessor
            puts out, else 'bgr', which mmagic's loaders give.
        conditioning_scale: Of a ControlNet: its strength, 1 by default.
        text_encoder: Of a ControlNet: the config of another text encoder, such as ``CachedTextEncoder``.
        sampler: Of a ControlNet: see :mod:`mmsynth.sampling.schedulers`; by default the config's ``test_scheduler``.
        trainable, prompt_dropout, mask_guidance_scale, dtype, compile: Of a ControlNet, as in
            ``mmsynth.DiffusersControlNet``.
        num_steps, guidance_scale: Of a ControlNet, 20 and 7.5 by default, which are mmagic's.

    Raises:
        ValueError: If the config is of another model, an option has no effect on it, or the checkpoint does not fit.
        FileNotFoundError: If there is no such file.
        ImportError: If a translation model is asked for and mmagic does not import.
    """
    options: dict[str, Any] = dict(
        conditioning_scale=conditioning_scale, text_encoder=text_encoder, sampler=sampler, trainable=trainable,
        prompt_dropout=prompt_dropout, num_steps=num_steps, guidance_scale=guidance_scale,
        mask_guidance_scale=mask_guidance_scale, dtype=dtype, compile=compile)
    given = {name: value for name, value in options.items() if value is not None}
    model = _read_model(config)
    generator: StableDiffusionControlNet | MMagicTranslation
    if model['type'] == 'ControlStableDiffusion':
        if channel_order is not None:
            raise ValueError('`channel_order` has no effect on a ControlNet, whose VAE knows RGB; leave it out.')
        generator = _build_controlnet(model, palette, _DEFAULTS | given)
    elif 'reachable_domains' in model:
        if given:
            raise ValueError(f"`{'`, `'.join(given)}` has no effect on mmagic's {model['type']}, which generates in "
                             'one pass; leave it out.')
        found = _channel_order(model)
        generator = MMagicTranslation(model, palette, channel_order or found)
    else:
        raise ValueError(f"`config`: its `model` is mmagic's {model['type']}; ControlStableDiffusion and translation "
                         'models (Pix2Pix, CycleGAN) generate for masks.')
    if checkpoint is not None:
        from mmsynth.models.checkpoints import load_generator  # here: it knows generators' networks
        load_generator(generator, checkpoint)
        if isinstance(generator, StableDiffusionControlNet):
            generator.network.is_pretrained = True
    return generator


@MODELS.register_module(name='ForMMagic')
def for_mmagic(generator: Mapping[str, Any]) -> nn.Module:
    """Build a generator of this package for mmagic's runner: it predicts mmagic's data samples.

    It is the generator itself, with the same checkpoints. The samples' ``fake_img`` and, where images come with the
    masks, ``gt_img`` are (3, H, W), float32, [0, 255], BGR.

    Args:
        generator: Config of the generator.

    Raises:
        ImportError: If mmagic does not import.
    """
    from mmsynth.models.mmagic_host import import_mmagic, predict_for_mmagic
    import_mmagic()
    model = MODELS.build(generator)
    model.register_forward_hook(predict_for_mmagic, with_kwargs=True)
    return model


def _read_model(config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    cfg = config if isinstance(config, Mapping) else Config.fromfile(str(find_config(config)))
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise ValueError(f'`config`: {config} has no `model` with a type; give a config of mmagic.')
    return Config(dict(model=model)).to_dict()['model'] | dict(type=str(model['type']).removeprefix('mmagic.'))


def _build_controlnet(model: Mapping[str, Any], palette: Sequence[Sequence[int]],
                      options: dict[str, Any]) -> StableDiffusionControlNet:
    """Build mmagic's parts as diffusers' modules."""
    unet = _build_part(model, 'unet', UNet2DConditionModel)
    network = UNetControlNet(unet, _build_part(model, 'controlnet', ControlNetModel), options.pop('conditioning_scale'))
    vae, scheduler = _build_vae(model), _build_part(model, 'scheduler', SchedulerMixin)
    if scheduler.config.get('trained_betas') is not None:
        raise ValueError('`config`: `model.scheduler.trained_betas` is a noise schedule of its own; only those that '
                         'follow from `beta_schedule`, `beta_start` and `beta_end` are supported.')
    network.is_pretrained &= 'from_pretrained' in model['vae']
    sampler = options.pop('sampler')
    return StableDiffusionControlNet(
        network, vae, PaletteCodec(palette), options.pop('text_encoder') or _build_text_encoder(model),
        scheduler=scheduler.config, sampler=_sampler_of(model) if sampler is None else sampler, **options)


def _build_part(model: Mapping[str, Any], name: str, base: type) -> Any:
    """Build a part that mmagic would wrap: loaded, with a loaded config, or with settings of its own."""
    kind = _kind_of(model, name, base)
    settings = {key: value for key, value in model[name].items() if key not in _NOT_OURS}
    if 'from_pretrained' in settings:
        return kind.from_pretrained(settings.pop('from_pretrained'), **settings)
    if 'from_config' in settings:
        loaded = kind.load_config(settings.pop('from_config'), **settings)
        # without its notes, of which one is where weights were loaded from
        return kind.from_config({key: value for key, value in loaded.items() if not key.startswith('_')})
    return kind(**settings)


def _build_vae(model: Mapping[str, Any]) -> VAECodec:
    _kind_of(model, 'vae', AutoencoderKL)
    if 'from_pretrained' in model['vae']:
        others = model['vae'].keys() - {*_NOT_OURS, 'from_pretrained', 'subfolder'}
        if others:
            raise ValueError(f'`config`: `model.vae` is loaded by `from_pretrained` and `subfolder`, got '
                             f'{", ".join(sorted(others))} too; leave it out, or name a folder that holds the VAE.')
        return VAECodec(model['vae']['from_pretrained'], subfolder=model['vae'].get('subfolder'))
    vae = _build_part(model, 'vae', AutoencoderKL)
    return VAECodec(config={key: value for key, value in vae.config.items() if not key.startswith('_')})


def _build_text_encoder(model: Mapping[str, Any]) -> CLIPTextEncoder:
    settings, tokenizer = model.get('text_encoder') or {}, model.get('tokenizer')
    pretrained = settings.get('pretrained_model_name_or_path')
    if settings.get('clip_type') != 'huggingface' or settings.get('subfolder') != 'text_encoder' \
            or tokenizer != pretrained:
        raise ValueError('`config`: `model.text_encoder` and `model.tokenizer` must be a ClipWrapper of the clip_type '
                         f"'huggingface' and a name, both of one Stable Diffusion, got {settings} and {tokenizer!r}. "
                         'Set `text_encoder` to the config of an encoder of mmsynth, such as CLIPTextEncoder.')
    return CLIPTextEncoder(pretrained)


def _sampler_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """The config's scheduler for tests as the settings of a ``sampler``."""
    name = 'test_scheduler' if model.get('test_scheduler') else 'scheduler'
    kind, scheduler = _kind_of(model, name, SchedulerMixin), _build_part(model, name, SchedulerMixin)
    if kind.__name__ not in SAMPLERS:
        raise ValueError(f'`config`: mmagic would sample over {kind.__name__} (`model.{name}`), which draws noise in '
                         'every step or asks for more than one prediction; set `sampler` to one of '
                         f'{", ".join(SAMPLERS)}.')
    schedule = {*STABLE_DIFFUSION_SCHEDULE, 'trained_betas', 'prediction_type'}
    known = inspect.signature(kind).parameters.keys() - schedule
    return dict(type=kind.__name__) | {key: value for key, value in scheduler.config.items() if key in known}


def _kind_of(model: Mapping[str, Any], name: str, base: type) -> Any:
    """The class of diffusers that a part of mmagic's config names."""
    named = (model.get(name) or {}).get('type')
    kind = getattr(diffusers, str(named).removeprefix('mmagic.'), None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(f'`config`: `model.{name}` is {named}; it must be a {base.__name__} of diffusers.')
    return kind


def _channel_order(model: Mapping[str, Any]) -> Literal['rgb', 'bgr']:
    """Of a translation model's images: what its data preprocessor puts out, which must scale to [-1, 1]."""
    settings = model.get('data_preprocessor') or {}
    other = {key: settings[key] for key in ('mean', 'std') if settings.get(key, 127.5) not in (127.5, [127.5] * 3)}
    if other:
        raise ValueError(f'`config`: `model.data_preprocessor` has {other}; only images in [-1, 1] are supported (mean '
                         'and std of 127.5).')
    return 'rgb' if settings.get('output_channel_order') == 'RGB' else 'bgr'
