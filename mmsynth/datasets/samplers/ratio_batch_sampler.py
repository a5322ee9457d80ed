"""RatioBatchSampler: batches with an exact share of synthetic samples, each a function of its number.

Legend: W ranks, B samples per rank, G = B·W samples per global batch, K synthetic samples drawn before a batch.
"""
import logging
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.logging import print_log

from mmsynth.datasets.samplers.draws import Draw
from mmsynth.datasets.samplers.schedule import RatioSchedule
from mmsynth.datasets.samplers.walk import SyntheticWalk
from mmsynth.datasets.synthetic_augment import SyntheticAugmentDataset
from mmsynth.pool.reader import PoolReader
from mmsynth.registry import DATA_SAMPLERS
from mmsynth.utils import derive_seed


@DATA_SAMPLERS.register_module()
class RatioBatchSampler:
    """Mix real and synthetic samples of a :class:`SyntheticAugmentDataset` in every batch::

        train_dataloader = dict(
            sampler=dict(type='InfiniteSampler', shuffle=True),
            batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.3, warmup=2000),
            dataset=dict(type='mmsynth.SyntheticAugmentDataset', dataset=..., pool='work_dirs/pool'))

    A batch is a function of its number, the seed and what is live in the pool at that iteration: of nothing that
    happened before, and not of the number of workers. Samples get seeds of their own for their transforms. So a resumed
    training draws what an unbroken one would have, and W ranks draw the parts of one global batch of G samples:

    - The share is exact in the global batch, by the largest remainder over batches (:class:`RatioSchedule`): after any
      number of batches the count is off by at most a half. The synthetic samples of a training go to ranks in turn.
    - Real samples: each once per epoch, shuffled anew for each.
    - Synthetic samples: each live one once per epoch of theirs, shuffled anew for each (:class:`SyntheticWalk`).

    While no synthetic sample is live, batches are real; later batches do not compensate for it.

    Args:
        sampler: The sampler of the data loader; its data set and seed are taken, its order is not.
        batch_size: Samples per batch and rank, B; the data loader's.
        ratio, warmup, ramp, stop: See :class:`RatioSchedule`.
        endless: Batches without end, for the host's IterBasedTrainLoop; False for EpochBasedTrainLoop. An epoch is as
            long as it is without synthetic samples, so that schedules by epochs keep their length.
        seed: Of all choices; by default the sampler's, which is the runner's.

    Raises:
        TypeError: If the data set is no SyntheticAugmentDataset.
        ValueError: If an option is out of range or contradicts another.
    """

    def __init__(self,
                 sampler: Any,
                 batch_size: int,
                 *,
                 ratio: float,
                 warmup: int = 0,
                 ramp: int = 0,
                 stop: int | None = None,
                 endless: bool = True,
                 seed: int | None = None) -> None:
        dataset = _checked_dataset(sampler)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f'`batch_size` must be a whole number, at least 1, got {batch_size!r}.')
        self.schedule = RatioSchedule(ratio, warmup, ramp, stop)
        self.batch_size = batch_size
        self.endless = endless
        self.has_own_seed = seed is not None
        self.seed: int = sampler.seed if seed is None else seed
        self.rank, self.world_size = get_dist_info()
        self.num_real = len(dataset)
        self.sampler = self  # the host's DistSamplerSeedHook calls `batch_sampler.sampler.set_epoch`
        self._pool = PoolReader(dataset.pool, dataset.ann_file)
        self._walk: SyntheticWalk | None = None
        self._start = 0
        self._permutation = lru_cache(maxsize=4)(self._permutation_of_epoch)

    def __len__(self) -> int:
        """Batches per epoch: as many as the real samples alone would make."""
        return -(-self.num_real // self._global_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches from the iteration that was set; to the end of its epoch, unless ``endless``."""
        self._current_walk(self._start)
        if self.schedule.ratio and not self._pool.live():
            print_log(f'the pool {self._pool.root} has no usable samples yet; batches are real until it has some.',
                      logger='current', level=logging.WARNING)
        iteration = self._start
        end = None if self.endless else (iteration // len(self) + 1) * len(self)
        while end is None or iteration < end:
            yield self.batch(iteration)
            iteration += 1
        self._start = end

    def set_iteration(self, iteration: int) -> None:
        """Let the next ``iter()`` start at a batch, counted from 0 since the training's start.

        The host's loop skips batches after a resume on its own; :func:`align_with_runner` makes both agree.

        Raises:
            ValueError: If it is negative.
        """
        if iteration < 0:
            raise ValueError(f'`iteration` must be 0 or more, got {iteration}.')
        self._start = iteration

    def set_seed(self, seed: int) -> None:
        """Take the runner's seed, which a resume may have changed, unless an own one was given."""
        if not self.has_own_seed and seed != self.seed:
            self.seed, self._walk = seed, None
            self._permutation.cache_clear()

    def set_epoch(self, epoch: int) -> None:
        """Start at an epoch; the host calls it. Without effect where there are no epochs."""
        if not self.endless:
            self._start = epoch * len(self)

    def batch(self, iteration: int) -> list[Draw]:
        """This rank's part of a batch: B draws, real ones below ``num_real``, synthetic ones from there on."""
        walk = self._current_walk(iteration)
        before, numbers = walk.drawn_before(iteration), walk.numbers(iteration)
        owners = [(before + place) % self.world_size for place in range(len(numbers))]
        draws = [self._draw(self.num_real + number, 'synthetic', before + place, iteration)
                 for place, number in enumerate(numbers) if owners[place] == self.rank]
        taken = self._global_size * iteration - before  # real samples of earlier batches
        taken += sum(self.batch_size - owners.count(rank) for rank in range(self.rank))
        draws += [self._draw(self._real(place), 'real', place, iteration)
                  for place in range(taken, taken + self.batch_size - len(draws))]
        random.Random(derive_seed(self.seed, 'order', iteration, self.rank)).shuffle(draws)
        return draws

    @property
    def _global_size(self) -> int:
        return self.batch_size * self.world_size

    def _draw(self, index: int, kind: str, place: int, iteration: int) -> Draw:
        """A draw whose seed follows from its place among all draws of its kind, which does not depend on ranks."""
        return Draw(index, derive_seed(self.seed, kind, place), iteration)

    def _real(self, place: int) -> int:
        epoch, index = divmod(place, self.num_real)
        return self._permutation(epoch)[index]

    def _permutation_of_epoch(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 'epoch', epoch))
        return torch.randperm(self.num_real, generator=generator).tolist()

    def _current_walk(self, iteration: int) -> SyntheticWalk:
        """The walk through the pool as it is now."""
        if self._pool.update(iteration) or self._walk is None:
            self._walk = SyntheticWalk(self.seed, self._quota, self._pool.changes)
        return self._walk

    def _quota(self, iterations: int) -> int:
        return self.schedule.quota(iterations, self._global_size)


def _checked_dataset(sampler: Any) -> SyntheticAugmentDataset:
    dataset = getattr(sampler, 'dataset', None)
    if not isinstance(dataset, SyntheticAugmentDataset):
        raise TypeError('RatioBatchSampler needs a SyntheticAugmentDataset as the outermost `dataset` of the data '
                        f'loader, got {type(dataset).__name__}. Put other wrappers inside it.')
    if dataset.ratio is not None:
        raise ValueError(f'`ratio` {dataset.ratio} of SyntheticAugmentDataset is for data loaders without a '
                         'RatioBatchSampler; leave it out.')
    if getattr(sampler, 'shuffle', True) is False:
        raise ValueError('`sampler.shuffle` must be True: RatioBatchSampler always shuffles.')
    if not len(dataset):
        raise ValueError('`dataset` has no real samples.')
    return dataset
