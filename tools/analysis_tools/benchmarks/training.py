"""Where the time of a training iteration goes: waiting for data, encoding images, the network, the optimizer.

What is left, the rest, is prompts, masks, noise, and the hooks (EMA, logging).

Of the clock, in this process: what worker processes load meanwhile costs nothing until they are waited for. On CUDA the
device is waited for at every mark, which is fair to the parts and makes the whole a little slower.
"""
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import Spread, paired_ratio
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

NETWORK = ('network', 'backward')
PARTS = ('data', 'preprocessing', 'latents', *NETWORK, 'optimizer')


class IterationTimesHook(Hook):
    """Times the parts of every iteration; the first ``warmup`` iterations do not count.

    Attributes:
        seconds: By part and 'iteration', one entry per iteration.
    """

    priority = 'VERY_LOW'  # so that what other hooks do after an iteration is in it

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds: dict[str, list[float]] = {name: [] for name in (*PARTS, 'iteration')}
        self._end = self._now()

    def before_train(self, runner: Runner) -> None:
        """Put a clock around each part."""
        model, optim_wrapper = runner.model, runner.optim_wrapper
        for owner, method, part in ((model.data_preprocessor, 'forward', 'preprocessing'),
                                    (model.latent_codec, 'encode', 'latents'),
                                    (model.network, 'forward', 'network'),
                                    (optim_wrapper, 'backward', 'backward'),
                                    (optim_wrapper, 'step', 'optimizer')):
            setattr(owner, method, self._timed(getattr(owner, method), part))
        self._end = self._now()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """The loader has been waited for."""
        for values in self.seconds.values():
            values.append(0.0)
        self.seconds['data'][-1] = self._now() - self._end

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """An iteration is over when the hooks have done their part."""
        end = self._now()
        self.seconds['iteration'][-1] = end - self._end
        self._end = end

    def counted(self) -> dict[str, list[float]]:
        """The seconds without those of the first iterations."""
        return {name: values[self.warmup:] for name, values in self.seconds.items()}

    def _timed(self, function: Callable, part: str) -> Callable:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = function(*args, **kwargs)
            self.seconds[part][-1] += self._now() - start
            return result

        return timed

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def time_training(cfg: Config, iterations: int = 50, warmup: int = 10) -> dict[str, list[float]]:
    """Train for a moment by a generator's config, in a folder that is removed.

    Args:
        cfg: The config; nothing is validated or saved.
        iterations: Those that count.
        warmup: Iterations before them.

    Returns:
        Seconds by part and 'iteration', one entry per iteration.

    Raises:
        ValueError: If ``iterations`` is below 1 or ``warmup`` below 0.
    """
    if iterations < 1 or warmup < 0:
        raise ValueError(f'`iterations` must be at least 1 and `warmup` 0, got {iterations} and {warmup}.')
    cfg = Config(cfg.to_dict())
    total = iterations + warmup
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=total, val_interval=total + 1)
    for part in ('val', 'test'):
        for name in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{part}_{name}'] = None
    cfg.default_hooks = dict(cfg.get('default_hooks') or {}, checkpoint=None)
    cfg.load_from, cfg.resume = None, False
    hook = IterationTimesHook(warmup)
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir, cfg.experiment_name = folder, Path(folder).name  # mmengine keeps one visualizer per name
        runner = Runner.from_cfg(cfg)
        runner.register_hook(hook)
        runner.train()
    return hook.counted()


def training_table(seconds: Mapping[str, Sequence[float]]) -> str:
    """The parts as a markdown table, and what is outside the network: all but its passes forwards and backwards."""
    whole = seconds['iteration']
    parts = {name: seconds[name] for name in PARTS}
    parts['rest'] = [total - sum(values) for total, *values in zip(whole, *parts.values(), strict=True)]
    outside = [total - sum(values) for total, *values in zip(whole, *(seconds[name] for name in NETWORK), strict=True)]
    rows = ['| part of an iteration | ms | share |', '|---|---|---|']
    for name, values in (*parts.items(), ('outside the network', outside)):
        share = paired_ratio(values, whole)
        rows.append(f'| {name} | {Spread.of([1000 * value for value in values])} | {share.median:.1%} |')
    rows.append(f'| whole | {Spread.of([1000 * value for value in whole])} | |')
    return '\n'.join(rows)
