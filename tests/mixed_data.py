"""A few real samples on disk and a pool beside them, for the tests of mixing."""
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from pool_samples import CLASSES, PALETTE, write_pool
from torch.utils.data import DataLoader

from mmsynth.datasets import SyntheticAugmentDataset
from mmsynth.pool.rounds import Round, write_rounds

SIZE = (16, 24)  # that of write_pool
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='RandomCrop', crop_size=(8, 12)),
            dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]


def write_real(root: Path, count: int = 10) -> Path:
    """Images 'r0.png' … of noise, and their masks."""
    rng = np.random.default_rng(1)
    for name in ('img_dir', 'ann_dir'):
        (root / name).mkdir(parents=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(root / f'img_dir/r{index}.png')
        Image.fromarray(rng.integers(0, 3, SIZE, dtype=np.uint8)).save(root / f'ann_dir/r{index}.png')
    return root


def real_config(root: Path, **changes: Any) -> dict[str, Any]:
    """Of mmseg's plain data set."""
    return dict(type='BaseSegDataset', data_root=str(root), img_suffix='.png', pipeline=PIPELINE,
                metainfo=dict(classes=CLASSES, palette=[list(color) for color in PALETTE]),
                data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir')) | changes


def mixed_config(root: Path, real: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Of the real samples in ``root/real`` with the pool in ``root/pool``."""
    return dict(type='mmsynth.SyntheticAugmentDataset', dataset=real or real_config(root / 'real'),
                pool=str(root / 'pool')) | changes


def write_mixed(root: Path, *, real: int = 10, synthetic: int = 4) -> Path:
    """Real samples 'r0' … in ``root/real``, and 's0' … in ``root/pool``."""
    write_real(root / 'real', real)
    write_pool(root / 'pool', [{}] * synthetic)
    return root


def publish(root: Path, *rounds: tuple[int, list[int], list[int]]) -> None:
    """Write the rounds of ``root/pool``: usable from, numbers that come, numbers that leave."""
    write_rounds(root / 'pool', [
        Round(number, usable_from, tuple(f's{index}' for index in come), tuple(f's{index}' for index in leave))
        for number, (usable_from, come, leave) in enumerate(rounds)])


def mixed_dataset(root: Path, **changes: Any) -> SyntheticAugmentDataset:
    return DATASETS.build(mixed_config(root, **changes))


def mixed_loader(root: Path, *, batch_size: int = 5, workers: int = 0, dataset: dict[str, Any] | None = None,
                 loader: dict[str, Any] | None = None, **options: Any) -> DataLoader:
    """The host's data loader with a RatioBatchSampler of these options."""
    return Runner.build_dataloader(dict(
        batch_size=batch_size, num_workers=workers, sampler=dict(type='InfiniteSampler', shuffle=True),
        batch_sampler=dict(type='mmsynth.RatioBatchSampler', **options),
        dataset=dataset or mixed_config(root)) | (loader or {}), seed=3)
