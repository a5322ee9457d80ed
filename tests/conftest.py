"""Shared by all tests: helper modules importable, mmseg's registries filled, a tiny backbone and a tiny run on disk."""
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # before huggingface_hub is imported: no test may reach a network
for folder in (Path(__file__).parent, Path(__file__).parents[1]):  # tests' helper modules, and an uninstalled mmsynth
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import pytest  # noqa: E402
import torch  # noqa: E402

# Here, because pytest reads this file before it starts workers: yapf caches its grammar in a file when it is imported,
# and of two workers that do so at once in a new environment one reads half a file.
from yapf.yapflib import yapf_api  # noqa: E402

if TYPE_CHECKING:
    from small_run import SmallRun


@pytest.fixture(scope='session', autouse=True)
def host_registries() -> None:
    """mmseg's classes by name, as its tools do; few threads, because the tests' tensors are small."""
    from mmseg.utils import register_all_modules
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=True)


@pytest.fixture(scope='session', autouse=True)
def unformatted_configs() -> None:
    """Configs are logged and saved as they are: formatting one takes mmengine's yapf 2 s, five times in a training."""
    yapf_api.FormatCode = lambda text, **options: (text, True)


@pytest.fixture(scope='session')
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Stable Diffusion 3's layout with tiny random weights; do not write into it."""
    from tiny_backbone import write_tiny_sd3
    return write_tiny_sd3(tmp_path_factory.mktemp('tiny_sd3'))


@pytest.fixture(scope='session')
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Stable Diffusion 1.5's layout with tiny random weights; do not write into it."""
    from tiny_backbone import write_tiny_sd15
    return write_tiny_sd15(tmp_path_factory.mktemp('tiny_sd15'))


@pytest.fixture(scope='session')
def small_run(tmp_path_factory: pytest.TempPathFactory) -> 'SmallRun':
    """A tiny data set with its configs, a generator and a critic trained for two iterations; do not write into it."""
    from small_run import train_small_run
    return train_small_run(tmp_path_factory.mktemp('small_run'))
