"""Parts of a generator as diffusers models: saved and loaded as config.json and safetensors, nothing else.

Each is the class that configs name, with ``save_pretrained`` and ``from_pretrained`` added; ``copy_of`` makes one of a
part of a generator, whose tensors it shares. What comes from diffusers or transformers (VAE, text encoders, tokenizers,
schedulers) is a component as it is.

Legend: B batch, C latent channels, N tokens, D width of a token, P width of the pooled embedding.
"""
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from accelerate import init_empty_weights  # peft brings it
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from mmsynth.models.encoders import (
    AutoencoderCodec,
    CachedTextEncoder,
    ClassNameEmbedding,
    PatchPCACodec,
    TextEmbeds,
    TextEncoder,
)
from mmsynth.models.encoders.text_encoders import as_prompt_list
from mmsynth.models.label_codecs import GreyLevelCodec, IdCodec, LabelCodec, OneHotCodec, PaletteCodec
from mmsynth.models.networks import ControlledUNet, MMDiT
from mmsynth.models.networks.control_branch import EMBEDDING_CHANNELS
from mmsynth.utils.prompts import TEMPLATE


class Component(ModelMixin, ConfigMixin):
    """What the components share: weights are loaded whole or not at all."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **options: Any) -> 'Component':
        """Load from a folder, as every diffusers model does.

        Raises:
            ValueError: If the file lacks a tensor, or has one too many; diffusers alone would leave random numbers.
        """
        model, found = super().from_pretrained(pretrained_model_name_or_path, **options, output_loading_info=True)
        wrong = {what: names for what in ('missing_keys', 'unexpected_keys') if (names := found.get(what))}
        if wrong:
            listed = '; '.join(f'{what.replace("_", " ")} {", ".join(names[:3])}' for what, names in wrong.items())
            raise ValueError(f'the weights in {pretrained_model_name_or_path} do not fit its config.json: {listed}. '
                             'The folder is incomplete or was put together from several; write or download it again.')
        return model

    @classmethod
    def _share(cls, module: nn.Module, **settings: Any) -> 'Component':
        """A component with the tensors of a module, which are not copied."""
        with init_empty_weights():
            model = cls(**settings)
        model.load_state_dict(module.state_dict(), assign=True)
        return model.eval()


def _brought(method: Callable[..., Any]) -> Callable[..., Any]:
    """Have a method move its component to where offloading computes; accelerate's own hook asks for parameters."""
    @wraps(method)
    def moving(self: 'Float32Component', *args: Any, **kwargs: Any) -> Any:
        device = getattr(getattr(self, '_hf_hook', None), 'execution_device', None)
        if device is not None:
            self.to(device)
        return method(self, *args, **kwargs)

    return moving


class Float32Component(Component):
    """A component that has buffers only, and keeps float32 whatever a pipeline computes in."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **options: Any) -> 'Float32Component':
        """As in :class:`Component`; a dtype that is asked for has no effect."""
        kept = {name: value for name, value in options.items() if name not in ('torch_dtype', 'dtype')}
        return super().from_pretrained(pretrained_model_name_or_path, **kept)

    def to(self, *args: Any, **kwargs: Any) -> 'Float32Component':
        """Move to a device; a dtype has no effect."""
        kwargs.pop('dtype', None)
        return super().to(*(arg for arg in args if not isinstance(arg, torch.dtype)), **kwargs)

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


class MMDiTModel(MMDiT, Component):
    """:class:`~mmsynth.models.networks.MMDiT` as a component, called ``transformer``.

    Args:
        trunk_config: Settings of the ``SD3Transformer2DModel``.
        mask_channels, control, legacy: See there.
    """

    @register_to_config
    def __init__(self, trunk_config: dict, mask_channels: int, control: str = 'triple', legacy: bool = False) -> None:
        super().__init__(trunk=dict(trunk_config), mask_channels=mask_channels, control=control, legacy=legacy)

    @classmethod
    def copy_of(cls, network: MMDiT) -> 'MMDiTModel':
        """The component of a generator's network."""
        return cls._share(network, trunk_config=_public(network.trunk.config), mask_channels=network.mask_channels,
                          control=network.control, legacy=network.legacy)


class ControlledUNetModel(ControlledUNet, Component):
    """:class:`~mmsynth.models.networks.ControlledUNet` as a component, called ``unet``.

    Args:
        unet_config: Settings of the ``UNet2DConditionModel``.
        mask_channels, mask_factor, reference_channels, conditioning_embedding_out_channels, mask_locality, legacy: See
            there.
    """

    encode_mask = apply_forward_hook(ControlledUNet.encode_mask)  # offloading watches `forward` alone
    encode_reference = apply_forward_hook(ControlledUNet.encode_reference)

    @register_to_config
    def __init__(self, unet_config: dict, mask_channels: int = 3, mask_factor: int = 8,
                 reference_channels: int | None = None,
                 conditioning_embedding_out_channels: Sequence[int] = EMBEDDING_CHANNELS, mask_locality: bool = False,
                 legacy: bool = False) -> None:
        super().__init__(unet=dict(unet_config), mask_channels=mask_channels, mask_factor=mask_factor,
                         reference_channels=reference_channels,
                         conditioning_embedding_out_channels=conditioning_embedding_out_channels,
                         mask_locality=mask_locality, legacy=legacy)

    @classmethod
    def copy_of(cls, network: ControlledUNet) -> 'ControlledUNetModel':
        """The component of a generator's network."""
        return cls._share(
            network, unet_config=_public(network.unet.config), mask_channels=network.mask_channels,
            mask_factor=network.mask_factor, reference_channels=network.reference_channels,
            conditioning_embedding_out_channels=network.conditioning_embedding_out_channels, legacy=network.legacy,
            mask_locality=any(name.endswith('.mask_locality') for name, _ in network.named_parameters()))


class PatchPCACodecModel(PatchPCACodec, Float32Component):
    """:class:`~mmsynth.models.encoders.PatchPCACodec` as a component, called ``vae``; see there for the settings."""

    encode = _brought(PatchPCACodec.encode)
    decode = _brought(PatchPCACodec.decode)

    @register_to_config
    def __init__(self, patch_size: int = 4, channels: int = 16, whitening: float = 1.0) -> None:
        super().__init__(patch_size, channels, whitening)

    @classmethod
    def copy_of(cls, codec: PatchPCACodec) -> 'PatchPCACodecModel':
        """The component of a generator's codec."""
        return cls._share(codec, patch_size=codec.factor, channels=codec.channels, whitening=codec.whitening)


class AutoencoderCodecModel(AutoencoderCodec, Float32Component):
    """:class:`~mmsynth.models.encoders.AutoencoderCodec` as a component, called ``vae``; see there for the settings."""

    encode = _brought(AutoencoderCodec.encode)
    decode = _brought(AutoencoderCodec.decode)

    @register_to_config
    def __init__(self, factor: int = 4, channels: int = 16, noise: float = 0.5, iterations: int = 1000) -> None:
        super().__init__(factor, channels, noise, iterations)

    @classmethod
    def copy_of(cls, codec: AutoencoderCodec) -> 'AutoencoderCodecModel':
        """The component of a generator's codec."""
        return cls._share(codec, factor=codec.factor, channels=codec.channels, noise=codec.noise,
                          iterations=codec.iterations)


class ClassNameEmbeddingModel(ClassNameEmbedding, Component):
    """:class:`~mmsynth.models.encoders.ClassNameEmbedding` as a component, called ``text_encoder``; see there."""

    encode = apply_forward_hook(ClassNameEmbedding.encode)

    @register_to_config
    def __init__(self, classes: Sequence[str], embed_dims: int, pooled_dims: int, template: str = TEMPLATE) -> None:
        super().__init__(classes, embed_dims, pooled_dims, template)

    @classmethod
    def copy_of(cls, encoder: ClassNameEmbedding) -> 'ClassNameEmbeddingModel':
        """The component of a generator's text encoder."""
        return cls._share(encoder, classes=list(encoder.classes), embed_dims=encoder.pool.in_features,
                          pooled_dims=encoder.pool.out_features, template=encoder.template)


class PromptTable(TextEncoder, Float32Component):
    """The embeddings of a fixed list of prompts, as a component called ``text_encoder``: a prompt cache to take along.

    Args:
        prompts: The prompts, each once.
        tokens: Tokens of a prompt, N.
        embed_dims: Width of a token, D.
        pooled_dims: Width of the pooled embedding, P.

    Raises:
        ValueError: If a prompt is listed twice.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor

    @register_to_config
    def __init__(self, prompts: Sequence[str], tokens: int, embed_dims: int, pooled_dims: int) -> None:
        super().__init__()
        self._rows = {prompt: row for row, prompt in enumerate(as_prompt_list(prompts))}
        if len(self._rows) != len(prompts):
            raise ValueError(f'`prompts` must name each prompt once, got {list(prompts)}.')
        self.register_buffer('prompt_embeds', torch.zeros(len(prompts), tokens, embed_dims))
        self.register_buffer('pooled_prompt_embeds', torch.zeros(len(prompts), pooled_dims))

    @classmethod
    def copy_of(cls, encoder: CachedTextEncoder) -> 'PromptTable':
        """The component of a generator's prompt cache: all that its encoder wrote there.

        Raises:
            ValueError: If the cache is empty, or holds embeddings of several encoders.
        """
        cache = encoder.open_cache()
        prompts = cache.keys()
        tokens, pooled = (torch.stack(rows).float() for rows in zip(*map(cache.get, prompts)))
        table = cls(prompts, tokens.shape[1], tokens.shape[2], pooled.shape[1])
        table.prompt_embeds, table.pooled_prompt_embeds = tokens, pooled
        return table

    @_brought
    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Look up B prompts: (B, N, D) and (B, P), float32.

        Raises:
            ValueError: If a prompt is not in the table.
        """
        prompts = as_prompt_list(prompts)
        unknown = next((prompt for prompt in prompts if prompt not in self._rows), None)
        if unknown is not None:
            known = ', '.join(map(repr, list(self._rows)[:5]))
            raise ValueError(f'`prompt` {unknown!r} is none of the {len(self._rows)} prompts that this pipeline has '
                             f'embeddings of ({known}, …). Use one of those, or give the pipeline real text encoders: '
                             'pipe.register_modules(text_encoder=…, tokenizer=…).')
        rows = torch.tensor([self._rows[prompt] for prompt in prompts], device=self.prompt_embeds.device)
        return TextEmbeds(self.prompt_embeds[rows], self.pooled_prompt_embeds[rows])


LABEL_CODECS: dict[str, type[LabelCodec]] = {
    codec.__name__: codec for codec in (GreyLevelCodec, IdCodec, OneHotCodec, PaletteCodec)}
COPIES: dict[type[nn.Module], type[Component]] = {
    MMDiT: MMDiTModel, ControlledUNet: ControlledUNetModel, PatchPCACodec: PatchPCACodecModel,
    AutoencoderCodec: AutoencoderCodecModel, ClassNameEmbedding: ClassNameEmbeddingModel,
    CachedTextEncoder: PromptTable}


def as_component(part: nn.Module, option: str) -> Component:
    """The component of a generator's part.

    Raises:
        ValueError: If there is none for its class; ``option`` is what a config calls the part.
    """
    if type(part) not in COPIES:
        known = ', '.join(kind.__name__ for kind in COPIES)
        raise ValueError(f'`model.{option}` is {type(part).__name__}, which no pipeline has a component for; of the '
                         f'parts with weights of their own these have one: {known}.')
    return COPIES[type(part)].copy_of(part)


def describe_label_codec(codec: LabelCodec) -> dict[str, Any]:
    """The settings of a label codec, for :func:`build_label_codec`.

    Raises:
        ValueError: If it is none of :data:`LABEL_CODECS`.
    """
    name = type(codec).__name__
    if LABEL_CODECS.get(name) is not type(codec):
        raise ValueError(f'`model.label_codec` is {name}; a pipeline can have {", ".join(LABEL_CODECS)}.')
    settings: dict[str, Any] = dict(type=name, ignore_index=codec.ignore_index)
    if isinstance(codec, PaletteCodec):
        return settings | dict(palette=((codec.colours.cpu() + 1) * 127.5).round().int().tolist())
    if isinstance(codec, OneHotCodec):
        settings['patch_size'] = codec.patch_size
    return settings | dict(num_classes=codec.num_classes)


def build_label_codec(settings: Mapping[str, Any]) -> LabelCodec:
    """Build a label codec of its settings.

    Raises:
        ValueError: If its ``type`` is none of :data:`LABEL_CODECS`, or a setting is out of range.
        TypeError: If the class does not know a setting.
    """
    settings = dict(settings)
    name = settings.pop('type', None)
    if name not in LABEL_CODECS:
        raise ValueError(f'`label_codec.type` must be one of {", ".join(LABEL_CODECS)}, got {name!r}.')
    return LABEL_CODECS[name](**settings)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a diffusers model, without what diffusers notes beside them."""
    return {name: value for name, value in config.items() if not name.startswith('_')}

