"""Checkpoints in the layout of latent diffusion (LDM): TISynth's release, Stable Diffusion 1.5, ControlNet for it.

By the first part of their names, tensors go to

    model.diffusion_model.X                        → unet: Stable Diffusion's own U-Net
    model.diffusion_model.….attn00_ls_trainable.X  → attention: the all-in attentions, with attn01_ssl_trainable,
                                                     norm00_trainable and norm01_trainable
    control_model.X                                → mask: the mask branch
    ssl_stage_model.X                              → reference: the reference branch
    first_stage_model.X                            → vae
    cond_stage_model.transformer.X                 → text_encoder (CLIP)

Renaming is key by key, and an unknown key keeps its name, so that strict loading reports it.
"""
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mmsynth.models.networks import UNET_BRANCHES, ControlledUNet
from mmsynth.models.networks.control_branch import COPIED_PARTS

_PARTS = {
    'model.diffusion_model.': 'unet',
    'control_model.': 'mask',
    'ssl_stage_model.': 'reference',
    'first_stage_model.': 'vae',
    'cond_stage_model.transformer.': 'text_encoder',
}
_NETWORK_PREFIXES = {branch: f'{part}.' for branch, part in UNET_BRANCHES.items()}
# what LDM stores beside weights: the noise schedule, averaged weights, counters, settings of the loss, token positions
_BESIDE = re.compile(r'^(betas|alphas_cumprod(_prev)?|sqrt_\w*alphas_cumprod(_minus_one)?|log_one_minus_alphas_cumprod|'
                     r'posterior_\w+|lvlb_weights|logvar|scale_factor|model_ema\..*|global_step|'
                     r'first_stage_model\.loss\..*|cond_stage_model\..*\.position_ids)$')
_RESNET = (('in_layers.0', 'norm1'), ('in_layers.2', 'conv1'), ('emb_layers.1', 'time_emb_proj'),
           ('out_layers.0', 'norm2'), ('out_layers.3', 'conv2'), ('skip_connection', 'conv_shortcut'))
_STEM = {
    'time_embed.0': 'time_embedding.linear_1',
    'time_embed.2': 'time_embedding.linear_2',
    'input_blocks.0.0': 'conv_in',
    'out.0': 'conv_norm_out',
    'out.2': 'conv_out',
}
_MIDDLE = {'0': 'resnets.0', '1': 'attentions.0', '2': 'resnets.1'}
_FUSION = {
    'attn00_ls_trainable': 'reference_attn',
    'attn01_ssl_trainable': 'mask_attn',
    'norm00_trainable': 'reference_norm',
    'norm01_trainable': 'mask_norm',
}
_VAE = tuple((re.compile(pattern), replacement) for pattern, replacement in (
    (r'\.mid\.block_1\.', '.mid_block.resnets.0.'),
    (r'\.mid\.block_2\.', '.mid_block.resnets.1.'),
    (r'\.mid\.attn_1\.norm\.', '.mid_block.attentions.0.group_norm.'),
    (r'\.mid\.attn_1\.([qkv])\.', r'.mid_block.attentions.0.to_\1.'),
    (r'\.mid\.attn_1\.proj_out\.', '.mid_block.attentions.0.to_out.0.'),
    (r'\.norm_out\.', '.conv_norm_out.'),
    (r'\.(down|up)\.(\d+)\.block\.(\d+)\.', r'.\1_blocks.\2.resnets.\3.'),
    (r'\.(down|up)\.(\d+)\.(down|up)sample\.', r'.\1_blocks.\2.\3samplers.0.'),
    (r'\.nin_shortcut\.', '.conv_shortcut.'),
))


@dataclass
class LDMCheckpoint:
    """The tensors of an LDM file by where they belong, under this package's names.

    Attributes:
        network: Of a :class:`~mmsynth.models.networks.ControlledUNet`.
        vae: Of diffusers' ``AutoencoderKL``.
        text_encoder: Of transformers' ``CLIPTextModel``, ``text_model.…`` as in the file.
        branches: Which of the network's branches the file has.
        unread: Keys of branch outputs that nobody reads, which the network does not have.
        beside: Keys of what is no weight: the noise schedule, averaged weights.
        unknown: What belongs nowhere, by the file's names.
    """

    network: dict[str, Tensor] = field(default_factory=dict)
    vae: dict[str, Tensor] = field(default_factory=dict)
    text_encoder: dict[str, Tensor] = field(default_factory=dict)
    branches: set[str] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    unknown: dict[str, Tensor] = field(default_factory=dict)


def is_ldm(state: Iterable[str]) -> bool:
    """Whether tensors carry the names of latent diffusion; enough are those of a U-Net or of a branch."""
    return any(key.startswith(('model.diffusion_model.', 'control_model.', 'ssl_stage_model.')) for key in state)


def read_ldm(state: Mapping[str, Tensor], network: ControlledUNet, *, source: str) -> LDMCheckpoint:
    """Sort and rename the tensors of an LDM file.

    Args:
        state: The tensors, see :func:`~mmsynth.utils.read_checkpoint`.
        network: Where they are to go: it tells how many layers a level has.
        source: Where they come from, for the message.

    Raises:
        ValueError: If it is no LDM file.
    """
    if not is_ldm(state):
        shown = ', '.join(sorted(state)[:3])
        raise ValueError(f'checkpoint {source} is not in the layout of latent diffusion: no tensor is called '
                         f'model.diffusion_model.…, control_model.… or ssl_stage_model.…; it has {shown}, …')
    found = LDMCheckpoint()
    level = re.compile(r'first_stage_model\.decoder\.up\.\d+\.block\.0\.conv1\.bias')
    levels = sum(level.fullmatch(key) is not None for key in state)
    for key, value in state.items():
        if _BESIDE.match(key):
            found.beside.append(key)
        else:
            _place(found, key, value, network, levels)
    return found


def rename_unet(key: str, layers: int) -> str:
    """A name of LDM's U-Net or of a branch's encoder → diffusers'.

    >>> rename_unet('input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight', layers=2)
    'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight'

    Args:
        key: Without its prefix.
        layers: Residual layers per level.
    """
    for old, new in _STEM.items():
        if key.startswith(f'{old}.'):
            return new + key.removeprefix(old)
    kind, *rest = key.split('.')
    if kind == 'input_blocks' and len(rest) > 2 and rest[0].isdigit():
        level, layer = divmod(int(rest[0]) - 1, layers + 1)
        return _rename_layer(f'down_blocks.{level}', layer, rest[1:])
    if kind == 'output_blocks' and len(rest) > 2 and rest[0].isdigit():
        level, layer = divmod(int(rest[0]), layers + 1)
        return _rename_layer(f'up_blocks.{level}', layer, rest[1:])
    if kind == 'middle_block' and rest[0] in _MIDDLE:
        return f'mid_block.{_MIDDLE[rest[0]]}.{_rename_resnet(".".join(rest[1:]))}'
    return key


def rename_branch(key: str, layers: int) -> str:
    """A name of a ControlNet in LDM's layout → :class:`~mmsynth.models.networks.ControlBranch`."""
    kind, *rest = key.split('.')
    tail = '.'.join(rest[1:])
    if kind == 'input_hint_block' and rest[0].isdigit():
        place = int(rest[0])  # every second one is an activation
        layer = {0: 'conv_in', 14: 'conv_out'}.get(place, f'blocks.{place // 2 - 1}')
        return f'hint_encoder.{layer}.{tail}'
    if kind == 'zero_convs':
        return f'network.controlnet_down_blocks.{rest[0]}.{tail.removeprefix("0.")}'
    if kind == 'middle_block_out':
        return f'network.controlnet_mid_block.{tail}'
    return f'network.{rename_unet(key, layers)}'


def rename_fusion(key: str) -> str:
    """A name of the released all-in attentions → ``Fusions`` of the network.

    >>> rename_fusion('output_blocks.3.1.transformer_blocks.0.attn00_ls_trainable.to_q.weight')
    'decoder.3.0.reference_attn.to_q.weight'
    """
    found = re.fullmatch(r'(?:middle_block|output_blocks\.(\d+))\.1\.transformer_blocks\.(\d+)\.(\w+)\.(.+)', key)
    if found is None or found[3] not in _FUSION:
        return key
    place = 'middle' if found[1] is None else f'decoder.{found[1]}'
    return f'{place}.{found[2]}.{_FUSION[found[3]]}.{found[4]}'


def rename_vae(key: str, levels: int) -> str:
    """A name of LDM's VAE → diffusers' ``AutoencoderKL``, whose decoder counts its levels the other way round."""
    for pattern, replacement in _VAE:
        key = pattern.sub(replacement, key)
    return re.sub(r'\.up_blocks\.(\d+)\.', lambda found: f'.up_blocks.{levels - 1 - int(found[1])}.', key)


def start_branches(found: LDMCheckpoint) -> None:
    """Have the branches that a file with a U-Net lacks start as copies of its encoder, as new ones do; in place."""
    encoder = {key.removeprefix('unet.'): value for key, value in found.network.items()
               if key.startswith(tuple(f'unet.{part}.' for part in COPIED_PARTS))}
    for branch in ('mask', 'reference'):
        if branch not in found.branches:
            found.network |= {f'{_NETWORK_PREFIXES[branch]}network.{key}': value for key, value in encoder.items()}


def _place(found: LDMCheckpoint, key: str, value: Tensor, network: ControlledUNet, levels: int) -> None:
    prefix = next((prefix for prefix in _PARTS if key.startswith(prefix)), None)
    if prefix is None:
        found.unknown[key] = value
        return
    part, rest = _PARTS[prefix], key.removeprefix(prefix)
    if part == 'vae':
        name = rename_vae(rest, levels)
        # LDM's VAE attends by 1x1 convolutions
        found.vae[name] = value[..., 0, 0] if '.attentions.' in name and value.ndim == 4 else value
    elif part == 'text_encoder':
        found.text_encoder[rest] = value
    else:
        _place_in_network(found, key, rest, value, part, network)


def _place_in_network(found: LDMCheckpoint, key: str, rest: str, value: Tensor, part: str,
                      network: ControlledUNet) -> None:
    layers = network.unet.config.layers_per_block
    if part == 'unet':
        part = 'attention' if '_trainable.' in rest else part
        name = rename_fusion(rest) if part == 'attention' else rename_unet(rest, layers)
    else:
        name = rename_branch(rest, layers)
        index = re.match(r'zero_convs\.(\d+)\.', rest)
        if index and int(index[1]) in network.unread_outputs:
            found.unread.append(key)
            return
    found.branches.add(part)
    found.network[_NETWORK_PREFIXES[part] + name] = value


def _rename_layer(level: str, layer: int, rest: Sequence[str]) -> str:
    """``rest`` is the place within LDM's block, 0 to 2, and the names below it."""
    tail = '.'.join(rest[1:])
    if rest[1] == 'op':  # downsampling is a block of its own
        return f'{level}.downsamplers.0.conv.{".".join(rest[2:])}'
    if rest[0] == '0':
        return f'{level}.resnets.{layer}.{_rename_resnet(tail)}'
    if rest[1] == 'conv':  # upsampling stands last in its block, after the attention if there is one
        return f'{level}.upsamplers.0.{tail}'
    return f'{level}.attentions.{layer}.{tail}'


def _rename_resnet(tail: str) -> str:
    for old, new in _RESNET:
        if tail.startswith(f'{old}.'):
            return new + tail.removeprefix(old)
    return tail
