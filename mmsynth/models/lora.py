"""Low-rank adaptation (LoRA, arXiv 2106.09685) of a network's branches, by peft.

A linear layer ``W x`` becomes ``W x + alpha / rank * B A x``; B starts at zero, so the network starts as it was. In
files the tensors have the names that the network has without LoRA, and ``….to_q.lora_A.weight`` beside
``….to_q.weight``: a checkpoint trained without LoRA can be adapted, and one with it reads like diffusers' own.
"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmsynth.models.backbone import FSDP_PREFIX

ATTENTION_PROJECTIONS = ('to_q', 'to_k', 'to_v', 'to_out.0', 'add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out')
_PEFT_PARTS = re.compile(r'\.base_layer(?=\.)|(?<=\.lora_[AB])\.default(?=\.)')


@dataclass(frozen=True)
class LoRASettings:
    """How the branches that are 'lora' are adapted.

    Attributes:
        rank: Rank of the update, at least 1.
        alpha: The update is scaled by ``alpha / rank``; by default ``alpha = rank``, above 0.
        target_modules: The linear layers that are adapted: the ends of their dotted names. None takes the attention
            projections, :data:`ATTENTION_PROJECTIONS`, as far as a branch has them.
        dropout: Of the update's input while training, in [0, 1).

    Raises:
        ValueError: If a setting is out of range.
        TypeError: If ``target_modules`` is a single string.
    """

    rank: int = 16
    alpha: float | None = None
    target_modules: Sequence[str] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f'`lora.rank` must be at least 1, got {self.rank}.')
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f'`lora.alpha` must be above 0, got {self.alpha}.')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'`lora.dropout` must be in [0, 1), got {self.dropout}.')
        if isinstance(self.target_modules, str):  # it would be read letter by letter
            raise TypeError(f'`lora.target_modules` must be a sequence of names, got {self.target_modules!r}; write '
                            f'[{self.target_modules!r}].')
        if self.target_modules is not None and not self.target_modules:
            raise ValueError('`lora.target_modules` must name at least one layer, got none; leave it out for the '
                             f'attention projections ({", ".join(ATTENTION_PROJECTIONS)}).')


def add_lora(network: Any, branches: Sequence[str], settings: LoRASettings) -> list[str]:
    """Adapt the linear layers of some branches, in place; which parameters train is left to the caller.

    Args:
        network: A module whose ``branch_parameters(branch)`` gives the named parameters of a branch.
        branches: The branches to adapt.
        settings: Rank, scale, and which layers.

    Returns:
        The dotted names of the adapted layers.

    Raises:
        ValueError: If a branch has no layer of the names asked for, or such a name fits no layer at all.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here: it imports transformers, which takes seconds
    names = _select_layers(network, branches, settings.target_modules)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        lora_dropout=settings.dropout,
        # a pattern of whole names: peft reads a list as ends of names, which may fit layers of another branch
        target_modules='|'.join(map(re.escape, names)))
    inject_adapter_in_model(config, network)
    network.register_state_dict_post_hook(_save_plain_names)
    network.register_load_state_dict_pre_hook(_load_plain_names)
    return names


def merge_lora(network: nn.Module) -> int:
    """Add the updates to the weights and put the plain layers back, in place; the number of layers that had one.

    Raises:
        ValueError: If a merged weight is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    adapted = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        network.set_submodule(name, layer.get_base_layer())
    return len(adapted)


def plain_name(name: str) -> str:
    """The name that a parameter of an adapted network has in files.

    >>> plain_name('attn.to_q.base_layer.weight'), plain_name('attn.to_q.lora_A.default.weight')
    ('attn.to_q.weight', 'attn.to_q.lora_A.weight')
    """
    return _PEFT_PARTS.sub('', name)


def _select_layers(network: Any, branches: Sequence[str], targets: Sequence[str] | None) -> list[str]:
    layers = {branch: _linear_layers(network, branch) for branch in branches}
    wanted = ATTENTION_PROJECTIONS if targets is None else targets
    chosen = {branch: [name for name in names if any(_ends_with(name, target) for target in wanted)]
              for branch, names in layers.items()}
    for branch in branches:
        if not chosen[branch]:
            raise ValueError(f'`lora.target_modules`: {_quoted(wanted)} fit no linear layer of the branch {branch!r}; '
                             f'it has {_ends(layers[branch])}.')
    every = [name for names in chosen.values() for name in names]
    unused = [target for target in targets or () if not any(_ends_with(name, target) for name in every)]
    if unused:
        listed = '; '.join(f'{branch!r} has {_ends(names)}' for branch, names in layers.items())
        raise ValueError(f'`lora.target_modules`: {_quoted(unused)} fits no linear layer of the branches that are '
                         f"'lora': {listed}.")
    return every


def _linear_layers(network: Any, branch: str) -> list[str]:
    own = network.branch_parameters(branch).keys()
    return [name for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and f'{name}.weight' in own]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f'.{target}')


def _ends(names: Sequence[str]) -> str:
    """The distinct last parts of dotted names, with the part before a number: 'to_out.0'."""
    ends = {end for name in names for end in re.findall(r'[^.]+(?:\.\d+)*$', name)}
    return ', '.join(sorted(ends)) or 'none'


def _quoted(names: Sequence[str]) -> str:
    return ', '.join(map(repr, names))


def _save_plain_names(network: nn.Module, state_dict: dict[str, Tensor], prefix: str,
                      local_metadata: Mapping[str, Any]) -> None:
    """State-dict hook: peft's names → plain ones, in their order."""
    del network, local_metadata
    if FSDP_PREFIX in prefix:
        return
    items = list(state_dict.items())
    state_dict.clear()
    state_dict.update((plain_name(key) if key.startswith(prefix) else key, value) for key, value in items)


def _load_plain_names(network: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
    """Load hook: plain names → peft's, which the layers below look for."""
    del others
    if FSDP_PREFIX in prefix:
        return
    for name, _ in network.named_parameters():
        plain = plain_name(name)
        if plain != name and prefix + plain in state_dict:
            state_dict[prefix + name] = state_dict.pop(prefix + plain)
