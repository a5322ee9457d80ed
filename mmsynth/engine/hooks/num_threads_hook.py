"""How many threads a training computes with."""
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsynth.registry import HOOKS


@HOOKS.register_module()
class NumThreadsHook(Hook):
    """Set torch's threads, for the rest of the process.

    Small networks on a CPU gain nothing from a second thread. Beside another busy process, or in a container with a CPU
    quota, it makes their iterations ten times as long.

    Args:
        num_threads: Threads, at least 1.
    """

    priority = 'VERY_HIGH'

    def __init__(self, num_threads: int = 1) -> None:
        self.num_threads = num_threads

    def before_run(self, runner: Runner) -> None:
        torch.set_num_threads(self.num_threads)
