"""Key maps between checkpoint layouts and this package's networks.

Released TODSynth names (reference: the published state dict), for block i:

    sd3_transformer.X                    → trunk.X
    msk_pos_embed.X                      → mask_embed.X
    mmdit_blocks.i.sd3_block.X           → trunk.transformer_blocks.i.X
    mmdit_blocks.i.attn.sd3_attn.X       → trunk.transformer_blocks.i.attn.X
    mmdit_blocks.i.attn2.X               → trunk.transformer_blocks.i.attn2.X
    mmdit_blocks.i.{norm1,ff,attn}.X     → mask_blocks.i.{norm1,ff,attn}.X

Names of latent diffusion, which TISynth's release has: :mod:`mmsynth.models.ldm_checkpoints`; of mmagic:
:mod:`mmsynth.models.mmagic_checkpoints`.
"""
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmsynth.models.backbone import FINGERPRINT, backbone_tensors, pretrained_names, whole_state_dict
from mmsynth.models.encoders import VAECodec
from mmsynth.models.ldm_checkpoints import LDMCheckpoint, is_ldm, read_ldm, start_branches
from mmsynth.models.lora import plain_name
from mmsynth.models.mmagic_checkpoints import (
    CLIP,
    VAE,
    from_mmagic,
    from_mmagic_translation,
    is_mmagic,
    is_mmagic_translation,
)
from mmsynth.models.networks import UNET_BRANCHES, ControlledUNet, MMDiT, UNetControlNet
from mmsynth.utils.checkpoint import LoadReport, load_state_dict, read_checkpoint

_RELEASED_TODSYNTH = tuple((re.compile(pattern), replacement) for pattern, replacement in (
    (r'^sd3_transformer\.(?!transformer_blocks)', 'trunk.'),
    (r'^msk_pos_embed\.', 'mask_embed.'),
    (r'^mmdit_blocks\.(\d+)\.sd3_block\.', r'trunk.transformer_blocks.\1.'),
    (r'^mmdit_blocks\.(\d+)\.attn\.sd3_attn\.', r'trunk.transformer_blocks.\1.attn.'),
    (r'^mmdit_blocks\.(\d+)\.attn2\.', r'trunk.transformer_blocks.\1.attn2.'),
    (r'^mmdit_blocks\.(\d+)\.(norm1|ff|attn)\.', r'mask_blocks.\1.\2.'),
))


def is_released_todsynth(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors carry the released TODSynth names."""
    return any(key.startswith('mmdit_blocks.') for key in state)


def from_released_todsynth(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename released TODSynth tensors to those of :class:`~mmsynth.models.networks.MMDiT`; unknown names stay."""
    return {_rename(key): value for key, value in state.items()}


def load_released_todsynth(network: MMDiT, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    """Load released weights into a ``legacy`` network.

    A release holds the trained tensors only; the frozen ones are the backbone's, so they may be missing, but nothing
    may be unexpected or of another shape. The network is changed only if all fits.

    Raises:
        ValueError: If the network is not ``legacy``, or a tensor has no place or another shape.
    """
    if not network.legacy:
        raise ValueError(f'checkpoint {source} is a TODSynth release; it needs the released network: set '
                         '`model.network.legacy=True`.')
    trained = {plain_name(name) for branch in ('image', 'mask') for name in network.branch_parameters(branch)}
    own = network.state_dict()
    frozen = own.keys() - trained
    backbone = {name: own[name] for name in frozen & pretrained_names(network)}
    return load_state_dict(
        network, from_released_todsynth(state), source=source, optional=frozen, backbone=backbone)


def load_ldm(generator: nn.Module, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    """Load a file in the layout of latent diffusion into a TISynth: its release, a ControlNet, or Stable Diffusion 1.5.

    What the file lacks as a whole stays as it is (reported as missing), but a control branch starts again as a copy of
    the file's U-Net. VAE and CLIP go to the codec and the text encoder, if the generator has these. Anything else that
    is missing, unexpected or of another shape is refused, and the generator left as it was.

    Raises:
        ValueError: If the generator's network is another, or the file does not fit; the message is the report.
    """
    if not isinstance(generator.network, ControlledUNet):
        raise ValueError(f'checkpoint {source} has the layout of latent diffusion (TISynth, ControlNet, Stable '
                         'Diffusion 1.5), whose network is a ControlledUNet; the config has a '
                         f"{type(generator.network).__name__}. Use a config with model.type='mmsynth.TISynth'.")
    found = read_ldm(state, generator.network, source=source)
    if 'unet' in found.branches:
        start_branches(found)
    own = whole_state_dict(generator)
    parts = {
        'network.': found.network,
        VAE: found.vae if isinstance(generator.latent_codec, VAECodec) else {},
        CLIP: _clip_tensors(found.text_encoder, own),
    }
    tensors = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
    given = tuple(_ldm_prefixes(found, parts))
    report = load_state_dict(
        generator,
        tensors | found.unknown,
        source=source,
        optional={name for name in own if not name.startswith(given) or 'lora_' in name},
        backbone=backbone_tensors(generator),
        ignored=(FINGERPRINT, ))
    _log_left_out(found, parts, source)
    return report


def load_mmagic(generator: nn.Module, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    """Load what mmagic's ``ControlStableDiffusion`` saved: the ControlNet, its U-Net, VAE and CLIP.

    CLIP goes to the text encoder, if the generator has one. What the file lacks is the backbone's, if that was loaded.

    Raises:
        ValueError: If the generator is another, or the file does not fit; the message is the report.
    """
    network = getattr(generator, 'network', None)
    if not isinstance(network, UNetControlNet):
        raise ValueError(f"checkpoint {source} is of mmagic's ControlStableDiffusion; the config has a "
                         f"{type(generator if network is None else network).__name__}. Use a config with "
                         "model.type='mmsynth.MMagicGenerator' or 'mmsynth.DiffusersControlNet'.")
    found = from_mmagic(state)
    clip = {name.removeprefix(CLIP): value for name, value in found.items() if name.startswith(CLIP)}
    taken = _clip_tensors(clip, whole_state_dict(generator))
    if clip and not taken:
        print_log(f'{source}: {len(clip)} tensors not taken over: of CLIP, as the config has another text encoder',
                  logger='current')
    tensors = {name: value for name, value in found.items() if not name.startswith(CLIP)}
    return load_state_dict(
        generator, tensors | {CLIP + name: value for name, value in taken.items()}, source=source,
        backbone=backbone_tensors(generator), ignored=(FINGERPRINT, ))


def _ldm_prefixes(found: LDMCheckpoint, parts: Mapping[str, Mapping[str, Tensor]]) -> Iterator[str]:
    """What of the generator an LDM file must hold in full: the U-Net, if not pretrained, and what it has at all."""
    for branch in sorted({'unet', *found.branches}):
        yield f'network.{UNET_BRANCHES[branch]}.'
    yield from (prefix for prefix in (VAE, CLIP) if parts[prefix])


def _log_left_out(found: LDMCheckpoint, parts: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
    """Say what of an LDM file has no place in the generator."""
    counts = {
        'of branch outputs that nobody reads': len(found.unread),
        'beside the weights (noise schedule, averaged weights)': len(found.beside),
        'of the VAE, as the config has another codec': 0 if parts[VAE] else len(found.vae),
        'of CLIP, as the config has another text encoder': 0 if parts[CLIP] else len(found.text_encoder),
    }
    for what, count in counts.items():
        if count:
            print_log(f'{source}: {count} tensors not taken over: {what}', logger='current')


def _clip_tensors(tensors: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """CLIP's tensors as the generator's text encoder calls them; none where it has no CLIP."""
    if not any(name.startswith(CLIP) for name in own):
        return {}
    nested = any(name.startswith(f'{CLIP}text_model.') for name in own)  # transformers 4, no longer 5
    return {key if nested else key.removeprefix('text_model.'): value for key, value in tensors.items()}


def control_tensors(network: MMDiT) -> dict[str, Tensor]:
    """What a network has beside its trunk, which is what it knows about masks."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith('trunk.')}


def load_control(network: MMDiT, path: str | Path) -> LoadReport:
    """Load the control tensors that ``tools/convert_checkpoint.py --to diffusers`` wrote.

    The trunk belongs to them: ``load_control(MMDiT(pretrained=FOLDER), FOLDER + '/control')``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If they do not fit the network, or its trunk is not loaded from a folder.
    """
    return _load_control(network, read_checkpoint(path), source=str(path))


def load_generator(generator: nn.Module, path: str | Path) -> LoadReport:
    """Load a generator's weights from any known layout.

    Ours (mmengine's .pth, or .safetensors), with or without the frozen tensors of the backbone; a release's file or
    folder; a file of latent diffusion, see :func:`load_ldm`, or of mmagic, see :func:`load_mmagic`; or the ``control``
    folder of a converted generator whose trunk the network is built on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not fit; the message is the report.
    """
    report = load_generator_state(generator, read_checkpoint(path), source=str(path))
    print_log(f'{path}: {report}', logger='current')
    return report


def load_generator_state(generator: nn.Module, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    """As :func:`load_generator`, from tensors that have been read."""
    network: Any = getattr(generator, 'network', None)
    if is_released_todsynth(state):
        if not isinstance(network, MMDiT):
            raise ValueError(f'checkpoint {source} is a TODSynth release, whose network is an MMDiT; the config has a '
                             f"{type(generator if network is None else network).__name__}. Use a config with "
                             "model.type='mmsynth.TODSynth'.")
        return load_released_todsynth(network, state, source=source)
    if is_ldm(state):
        return load_ldm(generator, state, source=source)
    if is_mmagic(state):
        return load_mmagic(generator, state, source=source)
    if is_mmagic_translation(state):
        return load_state_dict(generator, from_mmagic_translation(state), source=source)
    if _is_control(state):
        lacking = own_tensors_outside_network(generator)
        if lacking:
            raise ValueError(f'checkpoint {source} holds the control tensors of a network only; {", ".join(lacking)} '
                             'of the generator would stay as they are. Load a checkpoint of the whole generator.')
        return _load_control(network, state, source=source)
    return load_state_dict(
        generator, state, source=source, backbone=backbone_tensors(generator), ignored=(FINGERPRINT, ))


def own_tensors_outside_network(generator: nn.Module) -> list[str]:
    """The generator's parts that have tensors of their own, neither the network's nor a pretrained backbone's."""
    own = whole_state_dict(generator).keys() - pretrained_names(generator)
    return sorted({name.split('.')[0] for name in own} - {'network'})


def _is_control(state: Mapping[str, Tensor]) -> bool:
    return all(key.startswith(('mask_embed.', 'mask_blocks.')) for key in state)


def _load_control(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    own = network.state_dict()
    trunk = {name: own[name] for name in pretrained_names(network)}
    return load_state_dict(network, state, source=source, backbone=trunk)


def _rename(key: str) -> str:
    for pattern, replacement in _RELEASED_TODSYNTH:
        renamed, count = pattern.subn(replacement, key)
        if count:
            return renamed
    return key
