"""Preview pictures while a generator trains."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmsynth.engine.hooks.training_samples import draw_training_batch, unwrap
from mmsynth.guidance import Critic
from mmsynth.registry import HOOKS, MODELS
from mmsynth.utils import derive_seed, isolated_random_state
from mmsynth.visualization import colorize, draw_grid, save_png

_SEED = derive_seed(0, 'preview')


@HOOKS.register_module()
class PreviewHook(Hook):
    """Sample images for a few training masks every ``interval`` iterations and at the end.

    The grid goes to ``previews/iter_N.png`` in the work folder and, as ``preview``, to the runner's visualizer. It
    shows mask, real image and synthetic image, and with a critic what it predicts for the synthetic image; the same
    samples and the same noise every time, so that pictures compare. The training's random state is left alone.

    Args:
        interval: Iterations between pictures.
        num_samples: Rows of the grid.
        critic: Config of a :class:`~mmsynth.guidance.Critic` of images; None for no column of predictions.

    Raises:
        ValueError: If ``interval`` or ``num_samples`` is below 1.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1000, num_samples: int = 4, critic: dict | None = None) -> None:
        if interval < 1 or num_samples < 1:
            raise ValueError(f'`interval` and `num_samples` must be at least 1, got {interval} and {num_samples}.')
        self.interval = interval
        self.num_samples = num_samples
        self._critic_config = critic
        self._critic: Critic | None = None

    def before_train(self, runner: Runner) -> None:
        """Build the critic, so that one that does not fit stops the run at once; only the first rank needs it."""
        if self._critic_config is not None and is_main_process():
            model = unwrap(runner.model)
            self._critic = critic = MODELS.build(self._critic_config).to(model.device)
            critic.check_num_classes(model.num_classes)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: dict | Sequence | None = None,
                         outputs: dict | None = None) -> None:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._draw(runner)

    @torch.no_grad()
    def _draw(self, runner: Runner) -> None:
        """Sample on every rank and through the wrapper, as a sharded model's forward needs; the first rank writes."""
        model = unwrap(runner.model)
        batch = draw_training_batch(runner, self.num_samples, _SEED)
        for row, sample in enumerate(batch['data_samples']):
            sample.set_metainfo(dict(seed=derive_seed(_SEED, row)))
        with isolated_random_state(_SEED):
            model.eval()
            samples = runner.model._run_forward(batch, mode='predict')
            model.train()
        if not is_main_process():
            return
        synthetic = torch.stack([sample.generated_img.data for sample in samples])
        palette = runner.train_dataloader.dataset.metainfo['palette']
        columns = dict(
            mask=[colorize(sample.gt_sem_seg.data[0].cpu().numpy(), palette) for sample in samples],
            real=_pictures((batch['inputs'] + 1) * 127.5),
            synthetic=_pictures(synthetic))
        if self._critic is not None:
            predicted = self._critic.predict_logits(synthetic.to(model.device) / 255).argmax(1)
            columns['critic'] = [colorize(mask.cpu().numpy(), palette) for mask in predicted]
        grid, iteration = draw_grid(columns), runner.iter + 1
        path = Path(runner.work_dir) / 'previews' / f'iter_{iteration}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(grid, path)
        runner.visualizer.add_image('preview', grid, step=iteration)


def _pictures(images: Tensor) -> list[np.ndarray]:
    """Images (B, 3, H, W), [0, 255] → a list of (H, W, 3), uint8."""
    return list(images.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
