"""Where the randomness of a training step comes from: the same after a resume, another on every rank."""
import torch
from mmengine.dist import get_rank
from mmengine.logging import MessageHub

from mmsynth.utils import derive_seed
from mmsynth.utils.ranks import call_on_first_rank


class TrainingRandomness:
    """Makes the random generator of each training step: noise, sigmas, dropped prompts, posterior samples.

    In a runner's training it is a function of the run's seed (rank 0's), the iteration and the rank. So ranks, which
    the host seeds alike, see noise of their own, and a resumed training draws what an unbroken one would have, although
    the host's checkpoints hold no random state. For layers that draw from torch's global generators (LoRA's dropout)
    these are seeded likewise. Outside of a runner it follows torch's global generator, and the rank.
    """

    def __init__(self) -> None:
        self._seed, self._last = 0, -2

    def __call__(self) -> torch.Generator:
        info = MessageHub.get_current_instance().runtime_info
        iteration = info.get('iter') if info.get('loop_stage') == 'train' else None
        if iteration is None or iteration == self._last:  # a training that was broken off leaves its last one there
            return torch.Generator().manual_seed(derive_seed(int(torch.randint(2**62, ())), 'train', get_rank()))
        if iteration != self._last + 1:  # a training starts
            # With `diff_rank_seed` the host's seed is another on every rank, but after a resume rank 0's everywhere
            self._seed = call_on_first_rank(lambda: info['seed'])
        self._last = iteration
        torch.manual_seed(derive_seed(self._seed, 'layers', iteration, get_rank()))
        return torch.Generator().manual_seed(derive_seed(self._seed, 'train', iteration, get_rank()))
