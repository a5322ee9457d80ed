"""Leaving the global random state alone while something random is done beside the main work."""
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_random_state(seed: int, *, devices: bool = True) -> Iterator[None]:
    """Run a block under its own seed for ``random``, numpy and torch, then put the global state back as it was.

    Args:
        seed: In [0, 2**63).
        devices: Seed CUDA's generators too. A forked data loader worker must not touch devices.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count())) if devices and torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        (torch.manual_seed if devices else torch.random.default_generator.manual_seed)(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
