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
    trained = {name for branch in ('image', 'mask') for name in network.branch_parameters(branch)}
    frozen = network.state_dict().keys() - trained
    return load_state_dict(network, from_released_todsynth(state), source=source, optional=frozen)


def load_generator(generator: nn.Module, path: str | Path) -> LoadReport:
    """Load a generator's weights from any known layout: ours (mmengine), or a release's file or folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not fit; the message is the report.
    """
    state = read_checkpoint(path)
    if is_released_todsynth(state):
        report = load_released_todsynth(generator.network, state, source=str(path))
    else:
        report = load_state_dict(generator, state, source=str(path))
    print_log(f'{path}: {report}', logger='current')
    return report


def _rename(key: str) -> str:
    for pattern, replacement in _RELEASED_TODSYNTH:
        renamed, count = pattern.subn(replacement, key)
        if count:
            return renamed
    return key
