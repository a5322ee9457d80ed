"""A data folder that appears complete or not at all, and says in ``meta.json`` what it was made with."""
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

_WRITTEN_BY = 'projects.demo.prepare'
_OURS = {'img_dir', 'ann_dir', 'synthesis.jsonl', 'meta.json'}


def publish(out: Path, about: dict[str, Any], settings: dict[str, Any],
            fill: Callable[[Path], None]) -> dict[str, Any]:
    """Reuse a folder, or fill one next to ``out`` and give it the name ``out`` when it is complete.

    Args:
        out: The folder. An earlier one of ours is reused where it has the same settings, else replaced.
        about: Goes into ``meta.json``.
        settings: Everything that decides what the folder holds.
        fill: Writes ``img_dir/``, ``ann_dir/`` and ``synthesis.jsonl`` into the folder that it is given.

    Returns:
        What ``meta.json`` holds.

    Raises:
        ValueError: If ``out`` exists and is not ours, or holds more than we wrote.
    """
    out = out.resolve()
    settings = json.loads(json.dumps(settings))
    previous = _meta_of_ours(out)
    if previous.get('settings') == settings:
        print_log(f'{out} is up to date', logger='current')
        return previous
    staging, retired = out.with_name(f'{out.name}.tmp'), out.with_name(f'{out.name}.old')
    for folder in (out, staging, retired):
        _check_removable(folder)
    for folder in (staging, retired):
        shutil.rmtree(folder, ignore_errors=True)
    staging.mkdir(parents=True)
    _write_meta(staging, {'written_by': _WRITTEN_BY, 'settings': None})  # so that a killed run can be cleared away
    try:
        fill(staging)
        counts = {folder.name: len(list(folder.iterdir())) for folder in sorted((staging / 'ann_dir').iterdir())}
        _write_meta(staging, dict(about, written_by=_WRITTEN_BY, settings=settings, counts=counts))
    except BaseException:
        shutil.rmtree(staging)
        raise
    if out.exists():
        out.rename(retired)
    staging.rename(out)
    shutil.rmtree(retired, ignore_errors=True)
    return _meta_of_ours(out)


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')


def _meta_of_ours(folder: Path) -> dict[str, Any]:
    """``meta.json`` of a folder that this module wrote, else {}."""
    try:
        meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and meta.get('written_by') == _WRITTEN_BY else {}


def _check_removable(folder: Path) -> None:
    """Only a folder that this module wrote, and nobody added to, may go."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    foreign = sorted({item.name for item in folder.iterdir()} - _OURS) if _meta_of_ours(folder) else []
    if not _meta_of_ours(folder):
        raise ValueError(f'{folder} exists and was not written by this tool; give another `out`, or remove it yourself')
    if foreign:
        raise ValueError(f'{folder} was written with other settings and also holds {", ".join(foreign[:5])}; move that '
                         'elsewhere, or give another `out`')
