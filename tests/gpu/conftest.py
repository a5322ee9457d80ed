"""Tests that need a GPU; ``MMSYNTH_TEST_DEVICE=cpu`` runs the same bodies on the CPU, to show that they run."""
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

GIVEN = os.environ.get('MMSYNTH_TEST_DEVICE')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder; skip them where there is no device for them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker('gpu')
            if GIVEN is None and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason='no CUDA device; MMSYNTH_TEST_DEVICE=cpu runs it on the CPU'))


@pytest.fixture(scope='session')
def device() -> Iterator[str]:
    """Where a test runs; on CUDA float32 is float32, not TF32."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield GIVEN or 'cuda'
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags
