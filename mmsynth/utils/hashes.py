"""Hashes that name settings and weights in manifests and reports: 16 hex digits of a SHA-256."""
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def config_hash(cfg: Mapping[str, Any]) -> str:
    """A hash of a part of a config that does not depend on the order of its keys."""
    plain = cfg.to_dict() if hasattr(cfg, 'to_dict') else dict(cfg)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def config_and_files_hash(cfg: Mapping[str, Any]) -> str:
    """A hash of a part of a config and of the content of the files that decide what it builds.

    These are weights (``checkpoint``) and counts (``images_per_mask``): other ones under the same path give others.
    """
    plain = cfg.to_dict() if hasattr(cfg, 'to_dict') else dict(cfg)
    files = {path: file_hash(path) for path in sorted(_named_files(plain))}
    return config_hash(plain | dict(files=files)) if files else config_hash(plain)


def _named_files(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ('checkpoint', 'images_per_mask') and isinstance(value, str) and Path(value).exists():
                yield value
            else:
                yield from _named_files(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _named_files(item)


def file_hash(path: str | Path) -> str:
    """A hash of a file's content; of a folder, that of its ``model.safetensors``."""
    path = Path(path) / 'model.safetensors' if Path(path).is_dir() else Path(path)
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
