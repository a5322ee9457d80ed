"""Measures of a finished pool: what the metrics of ``val_evaluator`` say of stored images, as JSON and as tables."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info
from mmengine.evaluator import BaseMetric, Evaluator
from rich.console import Console
from rich.table import Table

from mmsynth.evaluation import (
    ClassColorSpread,
    ClassHistogram,
    FrechetDistance,
    MaskConsistency,
    SiblingDiversity,
    check_judge,
)
from mmsynth.evaluation.generated_metric import pool_sample
from mmsynth.evaluation.judge import Judge, choose_judge
from mmsynth.filtering import label_hash
from mmsynth.guidance import Critic
from mmsynth.pool import Pool, PoolRecord
from mmsynth.synthesis.build import load_config
from mmsynth.utils import progress_bar
from mmsynth.utils.files import atomic_write
from mmsynth.utils.hashes import config_hash
from mmsynth.utils.images import opened_image
from mmsynth.utils.labels import IGNORE_INDEX

REAL_SPLITS = ('train', 'val', 'test')
_CLASS_COLUMNS = {'consistency/IoU': 'IoU %', 'frechet/class': 'Fréchet', 'diversity/class': 'diversity',
                  'colors/class': 'colour spread', 'classes/before': 'share %', 'classes/after': 'after filter %'}


@dataclass(frozen=True)
class RealImages:
    """Which real images a pool is compared with.

    Args:
        config: A config whose data loader names them.
        split: 'train', 'val' or 'test': the loader's.
        count: Use so many of them, spread evenly; None for all.

    Raises:
        ValueError: If the split is another.
    """

    config: str | Path
    split: str = 'train'
    count: int | None = 1000

    def __post_init__(self) -> None:
        if self.split not in REAL_SPLITS:
            raise ValueError(f'`split` must be one of {", ".join(REAL_SPLITS)}, got {self.split!r}.')

    def dataset(self) -> dict[str, Any]:
        """The config of the data set.

        Raises:
            ValueError: If the config has none.
        """
        loader = load_config(self.config).get(f'{self.split}_dataloader')
        if not loader or 'dataset' not in loader:
            raise ValueError(f'{self.config}: it has no `{self.split}_dataloader.dataset`; name the real, labelled '
                             'images there, or choose another --real-split.')
        return loader.dataset.to_dict()


def evaluate_pool(root: str | Path,
                  judge_config: str | Path | None = None,
                  judge_checkpoint: str | Path | None = None,
                  *,
                  judge: Critic | Mapping[str, Any] | None = None,
                  real: RealImages | None = None,
                  inception: str | Path | None = None,
                  batch_size: int = 8,
                  device: str = 'cpu',
                  allow_critic: bool = False) -> dict[str, Any]:
    """Measure a pool; in a distributed run each rank reads its share of the images, and all get the results.

    Args:
        root: The pool's folder.
        judge_config: Config of the segmentor that judges.
        judge_checkpoint: Its weights; they must not be those of the critic that guided the pool.
        judge: In their place, any critic of images or its config. The Fréchet distance by a judge needs a segmentor.
        real: Real images for the Fréchet distance; None leaves it out.
        inception: File of the Inception weights, to give the FID to ``real`` as well.
        batch_size: Images that are read together; makes no difference to the results.
        device: Where the judge works.
        allow_critic: Let the critic judge; the result says so.

    Returns:
        Plain JSON values: ``pool``, ``images``, ``judge`` (config, checkpoint, weights_sha256, role), ``real`` and
        ``metrics``, named as in a ``val_evaluator``.

    Raises:
        ValueError: If the pool is empty, the judge is its critic, classes differ, an option has no effect, or a mask
            was changed after the filter ran.
        FileNotFoundError: If a file does not exist.
    """
    if batch_size < 1:
        raise ValueError(f'`batch_size` must be at least 1, got {batch_size}.')
    if inception is not None and real is None:
        raise ValueError('`inception` has an effect with `real` (--real-config) only; give real images to compare '
                         'with, or leave it out.')
    pool = Pool.open(root)
    if not len(pool):
        raise ValueError(f'pool {root} is empty; there is nothing to evaluate.')
    settings = choose_judge(judge, judge_config, judge_checkpoint)
    if settings is None:
        raise ValueError('`judge` is missing; give it, or `judge_config` and `judge_checkpoint`.')
    if inception is not None and not Path(inception).exists():
        raise FileNotFoundError(f'`inception` {inception} does not exist.')
    reader = Judge.build(settings, device)
    role = check_judge(pool, reader.weights_sha256, allow_critic=allow_critic)
    real_set = None if real is None else real.dataset()
    values = _measure(pool, _metrics(reader, real_set, real, inception, device), batch_size)
    hashes = reader.weights_sha256 or [None]
    return dict(
        pool=str(root),
        images=len(pool),
        judge=dict(
            config=type(reader.critic).__name__ if judge_config is None else str(judge_config),
            checkpoint=None if judge_checkpoint is None else str(judge_checkpoint),
            weights_sha256=hashes[0] if len(hashes) == 1 else hashes, role=role),
        real=None if real is None or real_set is None else dict(
            config=str(real.config), split=real.split, sha256=config_hash(real_set)),
        metrics={name: float(value) for name, value in values.items()})


def write_evaluation(evaluation: dict[str, Any], path: str | Path) -> None:
    """Write what :func:`evaluate_pool` found as JSON."""
    atomic_write(path, (json.dumps(evaluation, indent=2, allow_nan=False) + '\n').encode())


def print_evaluation(evaluation: dict[str, Any], classes: Sequence[str]) -> None:
    """Print tables of the measures and of the classes."""
    console, metrics = Console(), evaluation['metrics']
    judge = evaluation['judge']
    overall = Table('measure', 'value', title=f'{evaluation["pool"]}: {evaluation["images"]} images, judged by '
                    f'{judge["checkpoint"] or judge["config"]} ({judge["role"]})')
    of_classes = {f'{key}.{name}' for key in _CLASS_COLUMNS for name in classes}
    for name, value in metrics.items():
        if name not in of_classes:
            overall.add_row(name, f'{value:.4g}')
    console.print(overall)
    columns = {key: title for key, title in _CLASS_COLUMNS.items()
               if any(f'{key}.{name}' in metrics for name in classes)}
    table = Table('class', *columns.values(), title='Classes')
    for name in classes:
        values = [metrics.get(f'{key}.{name}') for key in columns]
        table.add_row(name, *('–' if value is None else f'{value:.4g}' for value in values))
    console.print(table)


def _metrics(judge: Judge, real_set: dict[str, Any] | None, real: RealImages | None,
             inception: str | Path | None, device: str) -> list[BaseMetric]:
    common: dict[str, Any] = dict(guidance={}, device=device)  # the pool's own guidance was looked at
    metrics: list[BaseMetric] = [MaskConsistency(judge, **common), SiblingDiversity(judge, **common),
                                 ClassColorSpread(), ClassHistogram()]
    if real is not None:
        common |= dict(real=real_set, num_real=real.count)
        metrics.append(FrechetDistance(judge, **common))
        if inception is not None:
            metrics.append(FrechetDistance(inception=str(inception), prefix='fid', **common))
    return metrics


def _measure(pool: Pool, metrics: list[BaseMetric], batch_size: int) -> dict[str, float]:
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = dict(classes=pool.classes, palette=pool.palette)
    rank, world_size = get_dist_info()
    records = pool.records[rank::world_size]  # what all of them say together is collected by the metrics
    with progress_bar(total=len(records), unit='img', title='judge') as bar:
        for start in range(0, len(records), batch_size):
            batch = records[start:start + batch_size]
            evaluator.process([_load(pool, record) for record in batch])
            bar.update(len(batch))
    return evaluator.evaluate(len(pool))


def _load(pool: Pool, record: PoolRecord) -> dict[str, Any]:
    mask = pool.load_mask(record)
    return pool_sample(record.id, pool.load_image(record), mask, _trusted(pool, record, mask))


def _trusted(pool: Pool, record: PoolRecord, mask: np.ndarray) -> np.ndarray | None:
    """What a filter left of the mask: nothing of a sample that it did not keep; None if none ran."""
    if record.filter is None:
        return None
    if record.filter['labels_sha256'] != label_hash(mask):
        raise ValueError(f'sample {record.id!r}: its mask {pool.root / record.mask} was changed after the filter ran; '
                         'run tools/filter_pool.py again.')
    if not record.filter['keep']:
        return np.full_like(mask, IGNORE_INDEX)
    with opened_image(pool.root / record.filter['label'], 'filtered label') as file:
        return np.asarray(file)
