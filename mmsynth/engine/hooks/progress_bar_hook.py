"""A progress bar with time left over a training run."""
from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsynth.registry import HOOKS
from mmsynth.utils import progress_bar


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Shows iterations done, the current loss, and the time left.

    Args:
        title: Stands before the bar; the experiment's name by default.
    """

    priority = 'LOW'

    def __init__(self, title: str | None = None) -> None:
        self.title = title
        self._bar = None

    def before_train(self, runner: Runner) -> None:
        if is_main_process():
            self._bar = progress_bar(
                total=runner.max_iters, initial=runner.iter, title=self.title or runner.experiment_name)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: dict | Sequence | None = None,
                         outputs: dict | None = None) -> None:
        if self._bar is not None:
            if outputs and 'loss' in outputs:
                self._bar.set_postfix(loss=f'{outputs["loss"].item():.3f}', refresh=False)
            self._bar.update()

    def after_train(self, runner: Runner) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
