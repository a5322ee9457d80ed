"""All that differs between the two host stacks, and what mmsynth changes in them.

The maintained stack (onedl-mmengine, onedl-mmcv, onedl-mmsegmentation) and the original one (mmengine 0.10, mmcv 2.1,
mmsegmentation 1.2) are imported by the same names. Which versions are accepted is in :mod:`mmsynth.gate`.
"""
import atexit
import contextlib
import io
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import mmseg
import torch
from mmengine import runner
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import _flexible_runner as flexible_runner
from mmengine.runner import checkpoint as host_checkpoint
from mmengine.runner import runner as host_runner
from torch import Tensor, nn

from mmsynth.utils.checkpoint import read_training_state

_UNPICKLE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'  # torch's own switch


class Normalisation(NamedTuple):
    """What mmseg's SegDataPreProcessor does to the pixels of an image that was read as BGR.

    Attributes:
        to_rgb: Whether the channels are swapped.
        mean: (C, 1, 1), float, subtracted from pixels in [0, 255] after the swap; None where there is none.
        std: (C, 1, 1), float, divides the difference; None where there is no mean.
    """

    to_rgb: bool
    mean: Tensor | None
    std: Tensor | None


def normalisation_of(preprocessor: nn.Module) -> Normalisation:
    """Read how a SegDataPreProcessor normalises images.

    Raises:
        ValueError: If it is of an mmseg that keeps this elsewhere.
    """
    own = vars(preprocessor)
    # onedl-mmsegmentation 1.4 inherits the flag from mmengine's ImgDataPreprocessor, mmsegmentation 1.2 has its own
    swap = own.get('_channel_conversion', own.get('channel_conversion'))
    normalise = own.get('_enable_normalize')
    if swap is None or normalise is None:
        raise ValueError(f'`data_preprocessor`: {type(preprocessor).__name__} of this mmseg does not say how it '
                         'normalises images; use onedl-mmsegmentation >= 1.4 or mmsegmentation 1.2.')
    return Normalisation(swap, *((preprocessor.mean, preprocessor.std) if normalise else (None, None)))


def register_mmseg() -> None:
    """Fill mmseg's registries, without the lines that the host prints about optional parts that it misses."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
        from mmseg.utils import register_all_modules
        register_all_modules(init_default_scope=False)
    for line in printed.getvalue().splitlines():
        if line != 'Could not import OneDL':
            print(line)


def load_checkpoints_as_data() -> None:
    """Make mmengine read checkpoints as data: those of ``load_from``, ``--resume``, ``init_cfg`` and ``pretrained``.

    Its own loader runs the code in a file: onedl-mmengine after torch's safe reader has refused it, and both where a
    file comes from the net. mmengine 0.10 cannot resume under torch >= 2.6, which refuses the log history; this can.
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` gives the loading back to mmengine, with a warning for each file.
    """
    from_local, from_url = host_checkpoint.load_from_local, host_checkpoint.load_url
    from_storage = getattr(host_checkpoint, '_safe_torch_load', None)  # onedl-mmengine; mmengine 0.10 calls torch.load

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        if _unpickles(filename):
            return from_local(filename, map_location)
        return _read(Path(filename).expanduser(), map_location)

    def load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
        if _unpickles(url):
            return from_url(url, model_dir=model_dir, map_location=map_location, progress=progress)
        file = Path(model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'), Path(urlparse(url).path).name)
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=progress)
        return _read(file, map_location)

    def load_from_storage(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        if _unpickles(file) and from_storage is not None:
            return from_storage(file, map_location=map_location, weights_only=weights_only)
        return _read(file, map_location)

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    host_checkpoint.load_url = load_url  # what http://, torchvision://, open-mmlab:// and mmcls:// end in
    if from_storage:
        host_checkpoint._safe_torch_load = load_from_storage


def find_torn_checkpoints() -> None:
    """Make ``--resume`` find the last checkpoint where the file that names it does not.

    mmengine writes ``last_checkpoint`` in place: a kill, or a full disk, in that moment leaves it empty or cut, and its
    own resume then fails. The checkpoint itself is whole by then.
    """
    find = host_checkpoint.find_latest_checkpoint

    def find_latest_checkpoint(path: str) -> str | None:
        noted = find(path)
        if noted is None or '://' in noted:
            return noted
        numbers = {file: int(match[1]) for file in Path(path).glob('*.pth')
                   if (match := re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', file.name))}
        last = str(max(numbers, key=lambda file: numbers[file])) if numbers else None
        # Cut, it may name a folder on the way; whole, it may name a checkpoint that is gone, which the resume says
        if noted and (last is None or noted == last or not last.startswith(noted)):
            return noted
        print_log(f'{path}/last_checkpoint was cut off while it was written; resuming from {last or "the start"}.',
                  logger='current', level=logging.WARNING)
        return last

    for module in (host_checkpoint, runner, host_runner, flexible_runner):
        module.find_latest_checkpoint = find_latest_checkpoint


def host_script(name: str) -> Path:
    """Find a script of mmseg's ``tools`` folder, such as ``'train.py'``.

    Raises:
        SystemExit: If mmseg has been installed without its tools.
    """
    package = Path(mmseg.__file__).parent
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    for script in candidates:
        if script.is_file():
            return script
    raise SystemExit(f'tools/{name}: mmseg is installed without its tools (looked for '
                     f'{" and ".join(map(str, candidates))}): reinstall it, or put an mmsegmentation checkout on '
                     'PYTHONPATH')


def end_distributed() -> None:
    """End a process of a gloo group whose work is done, with status 0; return where there is no such group.

    gloo's threads may abort an interpreter that shuts down (``terminate called without an active exception``), also
    after the group was left. What is registered with ``atexit`` is called as ever.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()
            and torch.distributed.get_backend() == 'gloo'):
        return
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _read(file: Any, map_location: Any) -> Any:
    content = read_training_state(file, map_location)
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)  # mmengine never writes it, and runs it as Python when it resumes
    return content


def _unpickles(source: Any) -> bool:
    """Whether the user has asked for unpickling, with a warning if so."""
    if os.getenv(_UNPICKLE, '0').lower() not in ('1', 'y', 'yes', 'true'):  # as torch reads it
        return False
    print_log(f'{_UNPICKLE} is set: {source} is unpickled, which runs the code in it.', logger='current',
              level=logging.WARNING)
    return True
