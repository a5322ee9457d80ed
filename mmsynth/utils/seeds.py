"""Seeds: the one place where a sample's randomness comes from.

A sample's seed is a function of the run seed and of what the sample is, never of its place in a batch, so results do
not depend on batch size, number of workers or ranks, or on a resume.
"""
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(run_seed: int, *keys: str | int) -> int:
    """Mix a run seed with the keys that name a sample, into a seed in [0, 2**63).

    Args:
        run_seed: The seed of the run.
        keys: What identifies the sample, in a fixed order, such as its mask's id and the repeat's number.
    """
    text = '\x1f'.join(str(part) for part in (int(run_seed), *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') >> 1


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], *, device: torch.device | str = 'cpu') -> Tensor:
    """Standard normal noise, one independent stream per sample, drawn on the CPU so that devices agree.

    Args:
        seeds: One seed per sample (B of them).
        shape: Shape of one sample, without the batch.
        device: Where the result goes.

    Returns:
        Noise (B, *shape), float32.
    """
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)
