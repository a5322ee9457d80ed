"""What mixing costs: the time of a training iteration with a warm pool and on real images only, side by side.

An iteration is what the training loop does: take a batch from the data loader, and one ``train_step`` of the config's
segmentor. Both kinds train the same model, in blocks that take turns, so that whatever changes on the machine falls on
both alike; which kind goes first changes from pair to pair. The first iterations of a block do not count: while the
other kind trained, its workers had time to load ahead.

A block's figure is its time divided by its iterations: with workers single iterations tell little, since one that
waits is followed by some that do not. The median over the blocks counts; the spread is that of the ratios within pairs.

Two clocks: seconds of the wall, and seconds of processor time of this process, all threads together. What other
programs take does not count in the second; without workers it holds the loading too. On a busy CPU look at that one.

The pool is *warm*: its samples are there before the first iteration, and none are generated. A generator is not needed:
unless a pool is given, a stand-in is made of real crops, which cost the same to read.
"""
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn
from torch.utils.data import DataLoader

from mmsynth.pool import Pool
from mmsynth.registry import MODELS
from mmsynth.synthesis.build import build_dataset
from mmsynth.utils import isolated_random_state, progress_bar

REAL, MIXED = 'real only', 'with a warm pool'
CLOCKS = dict(wall=time.perf_counter, processor=time.process_time)
_WRAPPER = 'mmsynth.SyntheticAugmentDataset'


@dataclass(frozen=True)
class LoadingSetting:
    """What is measured.

    Attributes:
        cfg: A training config whose ``train_dataloader.dataset`` is a ``mmsynth.SyntheticAugmentDataset``.
        pool: A pool that is there; None makes a stand-in.
        pool_size: Samples of the stand-in.
        num_workers: Of each of the two data loaders; None for the config's own.
        batch_size: None for the config's own.
        device: Where the segmentor trains.
    """

    cfg: Config
    pool: Path | None = None
    pool_size: int = 64
    num_workers: int | None = None
    batch_size: int | None = None
    device: str = 'cpu'


@dataclass(frozen=True)
class IterationTimes:
    """Seconds per iteration by one clock, a figure per block; the blocks of both kinds with one index are a pair."""

    real: tuple[float, ...]
    mixed: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the medians, mixed to real."""
        return statistics.median(self.mixed) / statistics.median(self.real)

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of the ratios within pairs."""
        ratios = [mixed / real for real, mixed in zip(self.real, self.mixed)]
        low, high = np.percentile(ratios, [25, 75])
        return float(low), float(high)


def benchmark_online(setting: LoadingSetting, *, pairs: int = 12, iterations: int = 20) -> dict[str, IterationTimes]:
    """Measure both kinds of iterations.

    Args:
        setting: What is measured.
        pairs: Blocks of each kind.
        iterations: Iterations of a block that count.

    Returns:
        The times by clock, see :data:`CLOCKS`.

    Raises:
        ValueError: If a number is below 1, or the config mixes no pool into its training data.
    """
    _check(setting, pairs=pairs, iterations=iterations)
    set_multi_processing(**setting.cfg.get('env_cfg', {}).get('mp_cfg', {}))
    with tempfile.TemporaryDirectory() as folder, isolated_random_state(0), \
            DefaultScope.overwrite_default_scope('mmseg'):
        pool = setting.pool or write_stand_in(setting.cfg, Path(folder) / 'pool', setting.pool_size)
        loaders = build_loaders(setting, pool)
        model, optim_wrapper = _build_model(setting)
        return _measure(loaders, _Step(model, optim_wrapper, setting.device), pairs, iterations)


def table(times: Mapping[str, IterationTimes]) -> str:
    """The times as a markdown table with a row per clock."""
    rows = [f'| clock | {REAL}, ms | {MIXED}, ms | ratio | quartiles of the ratios |', '|---|---|---|---|---|']
    for clock, found in times.items():
        real, mixed = (1000 * statistics.median(kind) for kind in (found.real, found.mixed))
        low, high = found.spread
        rows.append(f'| {clock} | {real:.1f} | {mixed:.1f} | {found.ratio:.3f} | {low:.3f} to {high:.3f} |')
    return '\n'.join(rows)


def write_stand_in(cfg: Config, folder: Path, size: int) -> Path:
    """Write a pool whose samples are crops of the config's real training data, as its own pipeline makes them."""
    dataset = build_dataset(cfg.train_dataloader.dataset.dataset)
    meta = dataset.metainfo
    with Pool.create(folder, dict(stand_in=True), meta['classes'], meta['palette']) as pool:
        for number in progress_bar(range(size), unit='img', title='stand-in pool'):
            item = dataset[number % len(dataset)]
            sample = item['data_samples']
            pool.add(
                f'{number:08d}',
                np.ascontiguousarray(item['inputs'].flip(0).permute(1, 2, 0).numpy().astype(np.uint8)),  # BGR → RGB
                sample.gt_sem_seg.data[0].numpy().astype(np.uint8),
                source_mask=str(sample.get('seg_map_path', '')),
                prompt='',
                seed=number,
                generator=dict(type='a real image', config_sha256='', weights_sha256=None))
    return folder


def build_loaders(setting: LoadingSetting, pool: Path) -> dict[str, DataLoader]:
    """A data loader of each kind; they differ in the data set and the batch sampler alone."""
    mixed = _loader_config(setting)
    real = copy.deepcopy(mixed)
    real.dataset = real.dataset.dataset
    real.pop('batch_sampler', None)
    mixed.dataset.pool = str(pool)
    if setting.pool is None:
        mixed.dataset.pop('ann_file', None)  # a list of the config's own pool, not of the stand-in
    return {kind: Runner.build_dataloader(cfg, seed=0) for kind, cfg in ((REAL, real), (MIXED, mixed))}


def _loader_config(setting: LoadingSetting) -> ConfigDict:
    cfg = copy.deepcopy(setting.cfg.train_dataloader)
    for key in ('num_workers', 'batch_size'):
        if getattr(setting, key) is not None:
            cfg[key] = getattr(setting, key)
    if not cfg.get('num_workers'):
        cfg.pop('prefetch_factor', None)
        cfg.persistent_workers = False
    return cfg


def _build_model(setting: LoadingSetting) -> tuple[nn.Module, OptimWrapper]:
    """The segmentor with random weights, which cost the same, and what steps it."""
    model = MODELS.build(setting.cfg.model).to(setting.device).train()
    return model, build_optim_wrapper(model, copy.deepcopy(setting.cfg.optim_wrapper))


class _Step:
    """One iteration: the next batch of a loader, and a step of the model with it."""

    def __init__(self, model: nn.Module, optim_wrapper: OptimWrapper, device: str) -> None:
        self._model = model
        self._optim_wrapper = optim_wrapper
        self._cuda = device.startswith('cuda')

    def __call__(self, batches: Iterator[Any]) -> None:
        self._model.train_step(next(batches), self._optim_wrapper)

    def times(self, batches: Iterator[Any], iterations: int) -> dict[str, float]:
        """Seconds per iteration of a block, by clock."""
        self._wait()
        start = {name: clock() for name, clock in CLOCKS.items()}
        for _ in range(iterations):
            self(batches)
        self._wait()
        return {name: (clock() - start[name]) / iterations for name, clock in CLOCKS.items()}

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def _measure(loaders: Mapping[str, DataLoader], step: _Step, pairs: int,
             iterations: int) -> dict[str, IterationTimes]:
    """Blocks of both kinds in turn, after a first pair that warms up."""
    batches = {kind: _endless(loader) for kind, loader in loaders.items()}
    ahead = {kind: 1 + loader.num_workers * (loader.prefetch_factor or 0) for kind, loader in loaders.items()}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in loaders}
    with progress_bar(total=2 * (pairs + 1), unit='block', title='benchmark') as bar:
        for pair in range(pairs + 1):
            for kind in (REAL, MIXED) if pair % 2 else (MIXED, REAL):
                for _ in range(ahead[kind]):
                    step(batches[kind])
                found[kind] += [step.times(batches[kind], iterations)] if pair else []
                bar.update()
    return {clock: IterationTimes(*(tuple(block[clock] for block in found[kind]) for kind in (REAL, MIXED)))
            for clock in CLOCKS}


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def _check(setting: LoadingSetting, **counts: int) -> None:
    wrong = {name: count for name, count in (counts | dict(pool_size=setting.pool_size)).items() if count < 1}
    if wrong:
        listed = ' and '.join(f'`{name}` must be at least 1, got {count}' for name, count in wrong.items())
        raise ValueError(f'{listed}.')
    dataset = (setting.cfg.get('train_dataloader') or {}).get('dataset') or {}
    if dataset.get('type') != _WRAPPER:
        raise ValueError(f'{setting.cfg.filename}: `train_dataloader.dataset` is {dataset.get("type")}, so nothing is '
                         f'mixed; give a config whose data set is a {_WRAPPER}, as '
                         'projects/demo/configs/segmentor_online.py.')
