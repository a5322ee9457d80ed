"""Only real data in validation and test: what a config must not contain is refused before training starts."""
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DATALOADERS = ('val_dataloader', 'test_dataloader')


def check_validation(cfg: Mapping[str, Any], pool: str | Path) -> None:
    """Refuse validation and test sets that read, or would come to read, synthetic samples.

    Args:
        cfg: A config, or any mapping, with ``val_dataloader`` and ``test_dataloader``: configs, or data loaders that
            were built of them, which know the defaults of their data sets too. Missing and None are fine.
        pool: Folder of the pool.

    Raises:
        ValueError: If one of them contains a :class:`SyntheticAugmentDataset`, reads a folder or file inside the pool,
            or reads a folder that the pool lies in; all such places are named at once.
    """
    pool = _real_path(pool)
    problems = []
    for name in DATALOADERS:
        for place, dataset in _datasets(_entry(cfg, name), name):
            if _is_augmented(dataset):
                problems.append(f'`{place}` is a SyntheticAugmentDataset; use the real data set alone')
            else:
                problems += _overlaps(place, dataset, pool)
    if problems:
        listed = '\n  '.join(dict.fromkeys(problems))
        raise ValueError(f'validation and test must see real data only:\n  {listed}')


def _overlaps(place: str, dataset: Any, pool: Path) -> list[str]:
    """What of one data set lies in the pool, or has the pool inside."""
    found = []
    for option, path, is_listed in _paths(dataset):
        where = f'`{place}.{option}` {path}'
        if path == pool or pool in path.parents:
            found.append(f'{where} belongs to the pool {pool}; give it a folder of real data')
        elif path in pool.parents and is_listed:
            found.append(f'{where} has the pool {pool} inside, whose images it would take for real ones; put the pool '
                         'somewhere else')
    return found


def _paths(dataset: Any) -> Iterator[tuple[str, Path, bool]]:
    """Option, path, and whether any file below it may be read, of everything that a data set reads."""
    root, ann_file = _entry(dataset, 'data_root') or '', _entry(dataset, 'ann_file') or ''
    prefixes = {key: _real_path(Path(root, value)) for key, value in (_entry(dataset, 'data_prefix') or {}).items()
                if value}
    folders = {key: path for key, path in prefixes.items() if not root or path != _real_path(root)}
    for key, path in folders.items():
        yield f'data_prefix.{key}', path, True
    if root:
        yield 'data_root', _real_path(root), not folders and not ann_file
    if ann_file:
        yield 'ann_file', _real_path(Path(root, ann_file)), False


def _datasets(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """A loader's data set and all those inside wrappers, with their places in the config."""
    if node is None:
        return
    if place not in DATALOADERS:
        yield place, node
    if (inner := _entry(node, 'dataset')) is not None:
        yield from _datasets(inner, f'{place}.dataset')
    for number, inner in enumerate(_entry(node, 'datasets') or ()):
        yield from _datasets(inner, f'{place}.datasets[{number}]')


def _is_augmented(dataset: Any) -> bool:
    """Whether it is, or is the config of, a SyntheticAugmentDataset; by name, as configs have it."""
    kind = dataset.get('type') if isinstance(dataset, Mapping) else type(dataset)
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1] == 'SyntheticAugmentDataset'


def _entry(node: Any, name: str) -> Any:
    return node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)


def _real_path(path: str | Path) -> Path:
    """Absolute, with links followed; the file need not be there."""
    return Path(path).expanduser().resolve()
