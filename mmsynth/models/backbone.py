"""Checkpoints without the backbone: frozen tensors that a ``pretrained`` folder holds are left out, and checked.

A tensor is left out if it came from ``from_pretrained``, or is a copy of one that did in the same part of the model,
was frozen when the model was built, and still has the value that it had then. What takes its place in the file is a
fingerprint: loading with another backbone is refused. Files that hold all tensors load as well.
"""
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

FINGERPRINT = 'backbone_fingerprint'
FSDP_PREFIX = '_fsdp_wrapped_module.'  # FSDP asks for all tensors by their own names; its strategy does the rest
_SAMPLES = 64


def leave_out_backbone(model: nn.Module) -> None:
    """Leave what the backbone holds out of ``model.state_dict()``, and let it be missing in what is loaded.

    To be called once, when it is settled what is frozen. Copies of the model (EMA) behave alike.
    """
    whole = whole_state_dict(model)
    pretrained = pretrained_names(model)
    frozen = {name: tensor for name, tensor in whole.items() if not tensor.requires_grad}
    names = frozen.keys() & (pretrained | set(_copies(whole, pretrained)))
    _note(model, {name: _probe(frozen[name]) for name in sorted(names)})
    model.register_state_dict_post_hook(_save_without_backbone)
    model.register_load_state_dict_pre_hook(_load_without_backbone)


def keep_in_checkpoints(model: nn.Module, names: Iterable[str]) -> None:
    """Have tensors that are left out stored and asked for again, for example when they have been changed."""
    left_out = _noted(model)
    _note(model, {name: left_out[name] for name in left_out.keys() - set(names)})


def backbone_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint of the model may lack, by their names in a full one."""
    whole = whole_state_dict(model)
    return {name: whole[name] for name in _noted(model)}


def pretrained_names(module: nn.Module) -> set[str]:
    """State-dict names of all tensors in parts that diffusers or transformers loaded with ``from_pretrained``."""
    parts = tuple(f'{name}.' for name, part in module.named_modules() if _source(part))
    return {name for name in whole_state_dict(module) if name.startswith(parts)}


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of all children by their names in a checkpoint, with nothing left out."""
    whole: dict[str, Tensor] = {}
    for name, child in model.named_children():
        child.state_dict(destination=whole, prefix=f'{name}.', keep_vars=True)
    return whole


class BackboneNotes:
    """What :func:`leave_out_backbone` leaves out of a model that is about to be sharded, and how its tensors began.

    Afterwards the tensors are in pieces, so that whole state dicts are treated beside the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._left_out = dict(_noted(model))
        self._built = {name: _probe(tensor) for name, tensor in whole_state_dict(model).items()}

    def leave_out(self, state_dict: dict[str, Tensor]) -> None:
        """Drop from the model's whole state dict, in place, what still is the backbone's."""
        _leave_out(self._left_out, state_dict, '')

    def check(self, state_dict: dict[str, Tensor]) -> set[str]:
        """Take the fingerprint out of a file's tensors, in place; the names that the file may lack.

        Raises:
            ValueError: If the model was built on another backbone.
        """
        fingerprint = state_dict.pop(FINGERPRINT, None)
        absent = {name: probe for name, probe in self._built.items() if name not in state_dict}
        if fingerprint is not None:
            _check_backbone(absent, fingerprint)
        return absent.keys() & self._left_out.keys()


def _noted(model: nn.Module) -> dict[str, int]:
    """The names of the tensors that a model leaves out, and their probes; noted on it, so that its copies have them."""
    return getattr(model, '_backbone', {})


def _note(model: nn.Module, probes: dict[str, int]) -> None:
    setattr(model, '_backbone', probes)  # noqa: B010  (to torch's types an attribute is a tensor or module)


def _source(module: nn.Module) -> str:
    """Folder or hub id that diffusers or transformers loaded a module from, which both note in its config."""
    return getattr(getattr(module, 'config', None), '_name_or_path', None) or ''


def _copies(whole: Mapping[str, Tensor], pretrained: set[str]) -> Iterator[str]:
    """Names of tensors that equal a pretrained one, or its first rows, in the same child of the model.

    Such as a mask stream that starts as a copy of the image stream.
    """
    originals: dict[tuple, list[Tensor]] = {}
    for name in sorted(pretrained):
        originals.setdefault(_likeness(name, whole[name]), []).append(whole[name])
    for name in sorted(whole.keys() - pretrained):
        tensor = whole[name]
        similar = originals.get(_likeness(name, tensor), []) if tensor.ndim else []
        if any(len(original) >= len(tensor) and torch.equal(original[:len(tensor)], tensor) for original in similar):
            yield name


def _likeness(name: str, tensor: Tensor) -> tuple:
    """What a tensor has in common with any whose first rows it is; spares most comparisons."""
    return name.split('.')[0], tensor.shape[1:], tensor.dtype, tuple(tensor.detach().flatten()[:1].tolist())


def _probe(tensor: Tensor) -> int:
    """A number that follows from 64 values spread over a tensor, the same on every device."""
    values = tensor.detach().reshape(-1)
    values = values[::max(values.numel() // _SAMPLES, 1) | 1][:_SAMPLES]  # odd: not the same column of every row
    bits = values.float().view(torch.int32).long().cpu()
    return int((bits * torch.arange(1, len(bits) + 1)).sum())


def _name_id(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big', signed=True)


def _save_without_backbone(model: nn.Module, state_dict: dict[str, Tensor], prefix: str,
                           local_metadata: Mapping[str, Any]) -> None:
    """State-dict hook: drop what still is the backbone's, and note what it was."""
    del local_metadata
    if FSDP_PREFIX not in prefix:
        _leave_out(_noted(model), state_dict, prefix)


def _leave_out(backbone: Mapping[str, int], state_dict: dict[str, Tensor], prefix: str) -> None:
    unchanged = [(name, probe) for name, probe in backbone.items() if _probe(state_dict[prefix + name]) == probe]
    for name, _ in unchanged:
        del state_dict[prefix + name]
    if unchanged:
        state_dict[prefix + FINGERPRINT] = torch.tensor([(_name_id(name), probe) for name, probe in unchanged])


def _load_without_backbone(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
    """Load hook: check the backbone, and keep the model's own tensors where the file has none."""
    del others
    if FSDP_PREFIX in prefix:
        return
    whole = whole_state_dict(model)
    fingerprint = state_dict.pop(prefix + FINGERPRINT, None)
    absent = {name: tensor for name, tensor in whole.items() if prefix + name not in state_dict}
    if fingerprint is not None:
        _check_backbone({name: _probe(tensor) for name, tensor in absent.items()}, fingerprint)
    for name in _noted(model).keys() & absent.keys():
        state_dict[prefix + name] = absent[name]


def _check_backbone(absent: Mapping[str, int], fingerprint: Tensor) -> None:
    """Compare the probes of tensors that a file does not hold with those that it notes."""
    expected = dict(fingerprint.tolist())
    other = [name for name, probe in absent.items() if expected.get(_name_id(name)) not in (None, probe)]
    if other:
        raise ValueError(f'the checkpoint was trained on another backbone: {len(other)} of the {len(expected)} tensors '
                         f'that it leaves to the backbone differ, the first is {other[0]}. Set `pretrained` of the '
                         'network and of the codecs to the weights that it was trained with, and load it into a model '
                         'that has just been built.')
