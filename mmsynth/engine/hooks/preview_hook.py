"""Pictures of what a generator paints while it trains."""
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsynth.engine.hooks.fit_latent_codec_hook import unwrap
from mmsynth.registry import HOOKS
from mmsynth.structures import SynthDataSample
from mmsynth.utils import derive_seed, isolated_random_state
from mmsynth.visualization import colorize, draw_grid, save_png

_SEED = derive_seed(0, 'preview')


@HOOKS.register_module()
class PreviewHook(Hook):
    """Every ``interval`` iterations paints a few training masks and writes ``previews/iter_N.png`` to the work folder.

    The grid shows mask, real image and synthetic image; the same samples and the same noise every time, so that
    pictures compare. The training's random state is left alone.

    Args:
        interval: Iterations between pictures.
        num_samples: Rows of the grid.

    Raises:
        ValueError: If an option is below 1.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1000, num_samples: int = 4) -> None:
        if interval < 1 or num_samples < 1:
            raise ValueError(f'`interval` and `num_samples` must be at least 1, got {interval} and {num_samples}.')
        self.interval = interval
        self.num_samples = num_samples

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: dict | Sequence | None = None,
                         outputs: dict | None = None) -> None:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._draw(runner)

    @master_only
    @torch.no_grad()
    def _draw(self, runner: Runner) -> None:
        model, dataset = unwrap(runner.model), runner.train_dataloader.dataset
        with isolated_random_state(_SEED):
            items = [dataset[index * len(dataset) // self.num_samples] for index in range(self.num_samples)]
            batch = dict(inputs=[item['inputs'] for item in items],
                         data_samples=[item['data_samples'] for item in items])
            samples = model.data_preprocessor(batch)['data_samples']
            model.eval()
            samples = model.synthesize(samples, [derive_seed(_SEED, row) for row in range(len(samples))])
            model.train()
        path = Path(runner.work_dir) / 'previews' / f'iter_{runner.iter + 1}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(_grid(samples, items, dataset.metainfo['palette']), path)


def _grid(samples: Sequence[SynthDataSample], items: Sequence[dict], palette: Sequence[Sequence[int]]) -> object:
    columns = dict(
        mask=[colorize(sample.gt_sem_seg.data.squeeze(0).cpu().numpy(), palette) for sample in samples],
        real=[item['inputs'].flip(0).permute(1, 2, 0).numpy() for item in items],  # loaded as BGR
        synthetic=[sample.generated_img.data.permute(1, 2, 0).numpy() for sample in samples])
    return draw_grid(columns)
