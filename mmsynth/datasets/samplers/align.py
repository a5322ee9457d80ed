"""Set a training's batch sampler, and mmengine's loop, to the iteration at which the runner stands."""
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsynth.datasets.samplers.ratio_batch_sampler import RatioBatchSampler
from mmsynth.utils.ranks import call_on_first_rank


def align_with_runner(runner: Runner) -> None:
    """Start the batches of a training where its runner stands; call it on all ranks, in a hook's ``before_train``.

    Without it, a resumed IterBasedTrainLoop draws all batches of the iterations before, and workers load them, only to
    throw them away: right, but slow. And some versions of mmengine draw the first batches when the loop is built,
    before a hook can bring the pool to where training starts. Does nothing without a :class:`RatioBatchSampler`.

    The sampler's seed becomes rank 0's, which is the one that checkpoints hold: with
    ``randomness=dict(diff_rank_seed=True)`` ``runner.seed`` differs by rank, and ranks draw parts of one global batch
    only with one seed.

    Raises:
        ValueError: If the sampler is endless and the loop goes by epochs, or the other way round.
    """
    loop, loader = runner.train_loop, runner.train_dataloader
    sampler = getattr(loader, 'batch_sampler', None)
    if not isinstance(sampler, RatioBatchSampler):
        return
    has_iterator = hasattr(loop, 'dataloader_iterator')
    if sampler.endless != has_iterator:
        raise ValueError(f'`endless` of RatioBatchSampler must be {has_iterator} with {type(loop).__name__}, got '
                         f'{sampler.endless}.')
    sampler.set_seed(call_on_first_rank(lambda: runner.seed))
    sampler.set_iteration(runner.iter)
    if has_iterator:
        skips_itself = hasattr(type(loop.dataloader_iterator), 'skip_iter')
        started = getattr(loop.dataloader_iterator, '_iterator', None) is not None
        loop.dataloader_iterator = _AlignedBatches(loader, 0 if skips_itself else runner.iter, started)


class _AlignedBatches:
    """Replace mmengine's iterator over the data loader by one that starts at the first request, and skips at no cost.

    Args:
        loader: The data loader; its sampler stands where training goes on.
        skipped: How many batches mmengine asks for, only to skip them. Versions whose iterator has ``skip_iter`` call
            that instead, or nothing with ``fast_forward_on_resume``.
        started: Whether the iterator that is replaced had drawn its seed from torch's generator already (mmengine 0.10
            does when the loop is built); this one then draws none, so that training stays as it is without it.
    """

    def __init__(self, loader: DataLoader, skipped: int, started: bool) -> None:
        self._loader = loader
        self._skipped = skipped
        self._started = started
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> '_AlignedBatches':
        return self

    def __next__(self) -> Any:
        if self._skipped:
            self._skipped -= 1
            return None
        if self._iterator is None:
            with torch.random.fork_rng(devices=[], enabled=self._started):
                self._iterator = iter(self._loader)
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the sampler stands there already."""
