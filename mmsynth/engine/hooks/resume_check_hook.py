"""Refuse to resume a training from a checkpoint that cannot continue it."""
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsynth.registry import HOOKS


@HOOKS.register_module()
class ResumeCheckHook(Hook):
    """Refuse a resume from a checkpoint without the optimizer's state.

    The host resumes from such a file without a word; the learning-rate schedulers then start from the warm-up's first
    rate, which for the rest of the training is next to nothing.

    Raises:
        ValueError: On a resume from a checkpoint that was saved with ``save_optimizer=False``.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check a checkpoint that training goes on from; one that is only loaded may hold weights alone."""
        if runner._resume and 'optimizer' not in checkpoint:
            raise ValueError('`resume`: the checkpoint holds no optimizer state, so the learning rate and the moments '
                             'of the optimizer would be lost. Save checkpoints with `save_optimizer=True` '
                             '(default_hooks.checkpoint), or start anew from the weights with `load_from` in the place '
                             'of `resume`.')
