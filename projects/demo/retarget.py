"""Pointing a shipped config at another data folder with other classes."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict


def retarget(cfg: Config, data_root: str | Path, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Change a config in place: its data folder, its class names, and every class count.

    Only what stands for the config's own data set is changed: its top-level ``data_root`` and paths below it,
    ``metainfo``, ``num_classes``, the text encoder's ``classes`` and the mask channels of a one-hot label codec.

    Raises:
        ValueError: If the config has no top-level ``data_root`` to replace.
    """
    if 'data_root' not in cfg:
        raise ValueError(f'{cfg.filename}: it has no top-level `data_root` to replace.')
    old_root = cfg.data_root
    metainfo = dict(classes=tuple(classes), palette=[list(colour) for colour in palette])
    _walk(cfg._cfg_dict, old_root, str(data_root), metainfo)


def _walk(node: Any, old_root: str, new_root: str, metainfo: dict[str, Any]) -> None:
    if isinstance(node, (list, tuple)):
        for item in node:
            _walk(item, old_root, new_root, metainfo)
    if not isinstance(node, ConfigDict):
        return
    names = metainfo['classes']
    for key, value in list(node.items()):
        if key == 'data_root' and value == old_root:
            node[key] = new_root
        elif isinstance(value, str) and value.startswith(f'{old_root}/'):
            node[key] = new_root + value[len(old_root):]
        elif key == 'metainfo':
            node[key] = dict(metainfo)
        elif key == 'num_classes':
            node[key] = len(names)
        elif key == 'classes':
            node[key] = names
        else:
            _walk(value, old_root, new_root, metainfo)
    codec, network = node.get('label_codec'), node.get('network')
    if codec and network and codec.get('type', '').endswith('OneHotCodec'):
        network['mask_channels'] = len(names) * codec.get('patch_size', 1)**2
