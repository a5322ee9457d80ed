"""SeededInfiniteSampler: the host's InfiniteSampler, whose draws bring a seed for their transforms."""
import itertools
from collections.abc import Iterator

from mmengine.dataset import InfiniteSampler

from mmsynth.datasets.samplers.draws import Draw
from mmsynth.registry import DATA_SAMPLERS
from mmsynth.utils import derive_seed


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """Draw the indices of :class:`mmengine.dataset.InfiniteSampler`, each with a seed of its own.

    A data set that knows :class:`~mmsynth.datasets.samplers.draws.Draw` (those of this package) runs its random
    transforms under that seed. So a training sees the same crops and flips with any number of workers, and a resumed
    one those of the unbroken run. Other data sets take a draw for a plain index.

    Args:
        dataset, shuffle, seed: See :class:`mmengine.dataset.InfiniteSampler`.
    """

    def __iter__(self) -> Iterator[Draw]:
        start = getattr(self, '_skipped', 0)
        for place, index in zip(itertools.count(start), self.indices):
            number = place * self.world_size + self.rank  # of the draw among those of all ranks
            yield Draw(index, derive_seed(self.seed, 'draw', number), -1)

    def skip(self, num_samples: int) -> None:
        """Start behind the first ``num_samples`` draws of this rank, as a resumed loop asks for."""
        super().skip(num_samples)
        self._skipped = num_samples
