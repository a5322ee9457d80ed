"""What OnlineSynthesisHook takes from the runner, and what it shows there."""
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from mmsynth.engine.hooks.training_samples import unwrap
from mmsynth.online.facts import class_pixels, preview, round_line, round_scalars
from mmsynth.online.masks import plain
from mmsynth.online.orders import Answer
from mmsynth.online.plan import RefreshPlan
from mmsynth.pool.rounds import Round
from mmsynth.visualization.plots import plot_class_balance


def live_segmentor(runner: Runner, critic: str | Mapping[str, Any] | None) -> nn.Module:
    """The segmentor in training, or its average where the critic is 'ema'; not a copy.

    Raises:
        ValueError: If an average is asked for and there is none.
    """
    if critic != 'ema':
        return unwrap(runner.model)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            return hook.ema_model.module
    raise ValueError("`critic='ema'` is the average that mmengine's EMAHook keeps; add dict(type='EMAHook') to "
                     "`custom_hooks`, or use 'runner'.")


def model_device(runner: Runner) -> str:
    return str(next(unwrap(runner.model).parameters()).device)


def real_data(runner: Runner) -> dict[str, Any]:
    """Config of the real data set of a training, without the synthetic samples beside it."""
    return _without_pool(plain(runner.cfg.train_dataloader.dataset))


def validation_loaders(runner: Runner) -> dict[str, Any]:
    """The data loaders that must be free of synthetic samples, built or as configs."""
    built = None if runner.val_loop is None else runner.val_dataloader
    return dict(val_dataloader=built, test_dataloader=runner.cfg.get('test_dataloader'))


def batches_ahead(runner: Runner, *, together: bool) -> int:
    """How many batches may be drawn that training has not taken yet, at the end of an iteration.

    Args:
        runner: The run.
        together: Whether all ranks hear of a round at once. If not, those without news are ahead by as much as they
            do between two meetings.
    """
    loader = runner.train_dataloader
    ahead = (loader.prefetch_factor or 2) * loader.num_workers
    if not together and get_world_size() > 1:
        ahead += 1 + getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    return ahead


def count_replaced(data_batch: Any) -> int:
    """How many samples of a batch came in the place of others whose files are damaged or gone."""
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, Mapping) else ()
    return sum(int(sample.get('replaced', 0)) for sample in samples)


def last_checkpoint(runner: Runner) -> str | None:
    """What the host has noted as the last checkpoint that is whole; None before the first."""
    path = Path(runner.work_dir) / 'last_checkpoint'
    return path.read_text() if path.is_file() else None


def show_round(runner: Runner, round: Round, answer: Answer, *, live: int, plan: RefreshPlan, pictures: int) -> None:
    """Tell of a round: a line in the log, scalars, and pictures of its samples and its classes."""
    scalars = round_scalars(round, answer.facts, live, answer.seconds)
    runner.logger.info(round_line(round, answer.facts, live, answer.seconds))
    runner.message_hub.update_scalars(scalars)
    step = runner.iter + 1
    runner.visualizer.add_scalars(scalars, step=step)
    if pictures and answer.samples:
        runner.visualizer.add_image('online_samples', preview(answer.samples[:pictures], plan.palette), step=step)
        counts = class_pixels(answer.samples, len(plan.classes))
        if sum(counts):
            chart = plot_class_balance(None, counts, plan.classes, plan.palette)
            runner.visualizer.add_image('online_classes', np.asarray(Image.open(io.BytesIO(chart)).convert('RGB')),
                                        step=step)


def _without_pool(cfg: Any) -> Any:
    """A config of data sets with the real one in the place of each SyntheticAugmentDataset."""
    if isinstance(cfg, Mapping):
        if str(cfg.get('type')).split('.')[-1] == 'SyntheticAugmentDataset':
            return _without_pool(cfg['dataset'])
        return {key: _without_pool(value) for key, value in cfg.items()}
    return [_without_pool(value) for value in cfg] if isinstance(cfg, list) else cfg
