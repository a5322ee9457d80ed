"""Key maps between checkpoint layouts and this package's networks.

Released TODSynth names (reference: the published state dict), for block i:

    sd3_transformer.X                    → trunk.X
    msk_pos_embed.X                      → mask_embed.X
    mmdit_blocks.i.sd3_block.X           → trunk.transformer_blocks.i.X
    mmdit_blocks.i.attn.sd3_attn.X       → trunk.transformer_blocks.i.attn.X
    mmdit_blocks.i.attn2.X               → trunk.transformer_blocks.i.attn2.X
    mmdit_blocks.i.{norm1,ff,attn}.X     → mask_blocks.i.{norm1,ff,attn}.X
"""
import re
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from mmsynth.models.backbone import FINGERPRINT, backbone_tensors, pretrained_names, whole_state_dict
from mmsynth.models.lora import plain_name
from mmsynth.models.networks import MMDiT
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
    folder; or the ``control`` folder of a converted generator whose trunk the network is built on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not fit; the message is the report.
    """
    report = load_generator_state(generator, read_checkpoint(path), source=str(path))
    print_log(f'{path}: {report}', logger='current')
    return report


def load_generator_state(generator: nn.Module, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    """As :func:`load_generator`, from tensors that have been read."""
    if is_released_todsynth(state):
        return load_released_todsynth(generator.network, state, source=source)
    if _is_control(state):
        lacking = own_tensors_outside_network(generator)
        if lacking:
            raise ValueError(f'checkpoint {source} holds the control tensors of a network only; {", ".join(lacking)} '
                             'of the generator would stay as they are. Load a checkpoint of the whole generator.')
        return _load_control(generator.network, state, source=source)
    return load_state_dict(
        generator, state, source=source, backbone=backbone_tensors(generator), ignored=(FINGERPRINT, ))


def own_tensors_outside_network(generator: nn.Module) -> list[str]:
    """The generator's parts that have tensors of their own, neither the network's nor a pretrained backbone's."""
    own = whole_state_dict(generator).keys() - pretrained_names(generator)
    return sorted({name.split('.')[0] for name in own} - {'network'})


def _is_control(state: Mapping[str, Tensor]) -> bool:
    return all(key.startswith(('mask_embed.', 'mask_blocks.')) for key in state)


def _load_control(network: MMDiT, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    own = network.state_dict()
    trunk = {name: own[name] for name in pretrained_names(network)}
    return load_state_dict(network, state, source=source, backbone=trunk)


def _rename(key: str) -> str:
    for pattern, replacement in _RELEASED_TODSYNTH:
        renamed, count = pattern.subn(replacement, key)
        if count:
            return renamed
    return key
