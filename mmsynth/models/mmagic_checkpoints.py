"""Checkpoints of mmagic under this package's names; mmagic need not be installed.

Its ``ControlStableDiffusion`` saves all its parts, each behind mmagic's wrapper of diffusers (``model.``):

    controlnet.model.X     → network.controlnet.X
    unet.model.X           → network.unet.X
    vae.model.X            → latent_codec.vae.X
    text_encoder.model.X   → text_encoder.text_encoder.X

A ``module.`` of a distributed wrapper may stand before each and before all. Its translation models (Pix2Pix, CycleGAN)
save a generator per domain beside the discriminators, which do not generate:

    generators.DOMAIN.X    → model.generators.DOMAIN.X

A name that is in no such place stays as it is, so that strict loading reports it.
"""
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

VAE, CLIP = 'latent_codec.vae.', 'text_encoder.text_encoder.'
_PARTS = {
    'controlnet': 'network.controlnet.',
    'unet': 'network.unet.',
    'vae': VAE,
    'text_encoder': CLIP,
}
_WRAPPED = re.compile(rf'^(?:module\.)?({"|".join(_PARTS)})\.(?:module\.)?model\.')
# the attention of a VAE as diffusers called it before 0.15, when mmagic came out
_VAE_ATTENTION = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}
_OLD_ATTENTION = re.compile(rf'(\.attentions\.\d+)\.({"|".join(_VAE_ATTENTION)})\.')


def is_mmagic(state: Iterable[str]) -> bool:
    """Whether tensors carry the names of a ControlNet of mmagic."""
    return any((found := _WRAPPED.match(key)) and found[1] == 'controlnet' for key in state)


def is_mmagic_translation(state: Iterable[str]) -> bool:
    """Whether tensors carry the names of a translation model of mmagic."""
    return any(key.startswith(('generators.', 'module.generators.')) for key in state)


def from_mmagic(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ``ControlStableDiffusion`` to those of a :class:`StableDiffusionControlNet`.

    The positions of CLIP's tokens, which older transformers counted among the weights, are left out.
    """
    return {rename_mmagic(key): value for key, value in state.items() if not key.endswith('.position_ids')}


def rename_mmagic(key: str) -> str:
    """Rename one tensor.

    >>> rename_mmagic('vae.model.encoder.mid_block.attentions.0.query.weight')
    'latent_codec.vae.encoder.mid_block.attentions.0.to_q.weight'
    """
    found = _WRAPPED.match(key)
    if found is None:
        return key
    name = _PARTS[found[1]] + key[found.end():]
    if found[1] != 'vae':
        return name
    return _OLD_ATTENTION.sub(lambda old: f'{old[1]}.{_VAE_ATTENTION[old[2]]}.', name)


def from_mmagic_translation(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a translation model to those of a :class:`MMagicTranslation`, without discriminators."""
    names = {key: key.removeprefix('module.') for key in state}
    return {name if not name.startswith('generators.') else f'model.{name}': state[key]
            for key, name in names.items() if not name.startswith('discriminators.')}
