"""A tiny segmentor that trains on real and synthetic samples, whose synthesis runs beside it.

Based on :mod:`small_run`; nothing in the pipeline or the model is random but what samplers and dropout draw.
"""
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_run import SmallRun, _run_numbers

GUIDANCE = dict(type='mmsynth.CRFM', steps=1, step_size=0.3)


class Recorder(Hook):
    """Keeps the losses and where the samples came from; ends the training in the middle if told to."""

    priority = 'LOWEST'

    def __init__(self, stop_after: int | None = None) -> None:
        self.losses: dict[int, float] = {}
        self.origins: dict[int, list[str]] = {}
        self.stop_after = stop_after

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses[runner.iter] = outputs['loss'].item()
        self.origins[runner.iter] = [sample.get('sample_id', '') if sample.get('origin') == 'synthetic' else 'real'
                                     for sample in data_batch['data_samples']]
        if runner.iter + 1 == self.stop_after:
            raise Stopped


class Stopped(Exception):
    """The training ended in the middle, as if killed."""


def hook_config(small: SmallRun, pool: Path, **changes: Any) -> dict[str, Any]:
    """The hook: four samples every three iterations, guided by the segmentor as it is."""
    return dict(type='mmsynth.OnlineSynthesisHook', pool=str(pool),
                generator=dict(config=str(small.config_file), checkpoint=str(small.generator)), guidance=GUIDANCE,
                interval=3, num_per_round=4, max_samples=8, num_preview=0) | changes


def online_config(small: SmallRun, pool: Path, work_dir: Path, *, hooks: list[dict], ratio: float = 0.5,
                  workers: int = 0, iterations: int = 8, **changes: Any) -> Config:
    """The training config of ``small_run``'s critic with synthesis added."""
    cfg = Config.fromfile(small.critic_config_file)
    real = cfg.train_dataloader.dataset.to_dict()
    cfg.train_dataloader = dict(
        batch_size=4, num_workers=workers, sampler=dict(type='InfiniteSampler', shuffle=True),
        batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=ratio),
        dataset=dict(type='mmsynth.SyntheticAugmentDataset', dataset=real, pool=str(pool)))
    if workers:
        cfg.train_dataloader.prefetch_factor = 1
    cfg.train_cfg.max_iters = iterations
    cfg.default_hooks.checkpoint.interval = 4
    cfg.model.decode_head.dropout_ratio = 0.0
    cfg.custom_hooks = hooks
    cfg.custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
    cfg.merge_from_dict(changes)
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'INFO'
    cfg.experiment_name = f'online_{next(_run_numbers)}'
    return cfg


def train_online(cfg: Config, stop_after: int | None = None) -> tuple[Runner, Recorder]:
    """Train, to the end or until it is stopped in the middle."""
    runner, recorder = Runner.from_cfg(cfg), Recorder(stop_after)
    runner.register_hook(recorder)
    try:
        runner.train()
    except Stopped:
        pass
    runner.train_loop.dataloader_iterator = None  # ends its workers; the garbage collector takes 5 s for each
    return runner, recorder


def log_of(work_dir: Path) -> str:
    """All that was logged."""
    return '\n'.join(path.read_text() for path in sorted(work_dir.glob('*/*.log')))


def random_states() -> list[Any]:
    """Everything random that a training uses."""
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All files of a pool with their content, but for the lock."""
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path.name != '.lock':
            yield str(path.relative_to(folder)), path.read_bytes()
