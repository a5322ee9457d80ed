"""Reading weights and training states from files as data, and loading weights strictly with a report.

Nothing in a file is ever run. torch's weights-only reader refuses whatever is no tensor or plain container; of the
further values that mmengine stores in its checkpoints (log history, numpy arrays and scalars), it is given inert
stand-ins to read, and the few known kinds are rebuilt from what those hold. numpy's own functions for that are not
used: they trust the file with pointers and types.
"""
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsynth.utils.messages import first_few

# what mmengine keeps beside the weights: log history, its methods, scheduler state, numpy values
_STAND_IN_ROOTS = ('mmengine.', 'numpy.', 'builtins.getattr', 'builtins.bytes')


@dataclass
class LoadReport:
    """Which tensors of a state dict were loaded, and which did not fit.

    Attributes:
        loaded: Number of tensors taken over.
        missing: Keys of the module that the file lacks.
        unexpected: Keys of the file that the module lacks.
        mismatched: Keys of both whose shapes differ, with both shapes.
        from_backbone: Number of tensors that the file leaves to the pretrained backbone, which the module has.
    """

    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    from_backbone: int = 0

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f'{self.loaded} tensors loaded']
        if self.from_backbone:
            lines.append(f'{self.from_backbone} frozen tensors from the backbone')
        for title, keys in (('missing in the file', self.missing), ('unexpected in the file', self.unexpected),
                            ('of another shape', self.mismatched)):
            if keys:
                lines.append(f'{len(keys)} {title}: {first_few(keys)}')
        return '; '.join(lines)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint: ``.safetensors``, an mmengine or plain ``.pth`` / ``.ckpt``, or a folder.

    A folder is one that a release wrote, holding ``model.safetensors``. A ``state_dict`` inside the file is unwrapped.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds none.
        ValueError: If the file is no checkpoint, or could only be read by running code from it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / 'model.safetensors'
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist; give a .pth or .safetensors file, or a folder '
                                'that holds model.safetensors.')
    content = _read_weights(path)
    while isinstance(content, Mapping) and isinstance(content.get('state_dict'), Mapping):
        content = content['state_dict']
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)} \
        if isinstance(content, Mapping) else {}
    if not tensors:
        raise ValueError(f'checkpoint {path} holds no tensors; is it a checkpoint?')
    return tensors


def load_state_dict(module: nn.Module, state: Mapping[str, Tensor], *, source: str,
                    optional: Collection[str] = (), backbone: Mapping[str, Tensor] | None = None,
                    ignored: Collection[str] = ()) -> LoadReport:
    """Copy a state dict into a module, which is changed only if everything fits.

    Args:
        module: Where the tensors go.
        state: The tensors, by the module's own names.
        source: Where they come from, for the message.
        optional: Keys of the module that may be missing; the report still lists them.
        backbone: Tensors that the module has from its pretrained backbone. They may be missing as well, and are only
            counted; the module's own state dict need not hold them.
        ignored: Keys of the file or the module that are no tensors of it, and not reported.

    Raises:
        ValueError: If another key is missing, or one is unexpected or of another shape; the message is the report.
    """
    backbone = backbone or {}
    own = {key: value for key, value in {**backbone, **module.state_dict()}.items() if key not in ignored}
    shared = own.keys() & state.keys()
    absent = own.keys() - state.keys()
    mismatched = {key for key in shared if own[key].shape != state[key].shape}
    report = LoadReport(
        loaded=len(shared) - len(mismatched),
        missing=sorted(absent - backbone.keys()),
        unexpected=sorted(state.keys() - own.keys() - set(ignored)),
        mismatched=[f'{key} (file {tuple(state[key].shape)}, model {tuple(own[key].shape)})'
                    for key in sorted(mismatched)],
        from_backbone=len(absent & backbone.keys()))
    if report.unexpected or report.mismatched or not set(report.missing) <= set(optional):
        raise ValueError(f'checkpoint {source} does not fit {type(module).__name__}: {report}. '
                         'Use the config that it was trained with.')
    module.load_state_dict(dict(state), strict=False)
    return report


def _read_weights(path: Path) -> Any:
    if path.suffix == '.safetensors':
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f'checkpoint {path} cannot be read as safetensors: {error}.') from error
    try:
        return _read_torch(path)
    except _Unreadable as error:
        raise ValueError(f'checkpoint {path} cannot be read as plain weights: {error}. Reading it would run code from '
                         'the file or it is damaged; save it again as a state dict or as safetensors.') from error


def read_training_state(file: str | Path | BinaryIO, map_location: Any = None) -> Any:
    """Read all that mmengine stores in a checkpoint: weights, optimizer, schedulers, message hub, meta.

    Args:
        file: Path of a ``.pth`` file, or the file opened.
        map_location: As of ``torch.load``.

    Returns:
        What ``torch.load`` would return of a checkpoint that mmengine or plain PyTorch has written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file could only be read by running code from it, or is damaged.
    """
    source = file if isinstance(file, (str, Path)) else getattr(file, 'name', 'in memory')
    try:
        return _rebuild(_read_torch(file, map_location))
    except OSError:
        raise
    except Exception as error:  # of a crafted file: what numpy or Python stumbles over
        reason = error if isinstance(error, _Unreadable) else f'{type(error).__name__}: {error}'
        raise ValueError(
            f'checkpoint {source} cannot be read as data: {reason}. Reading it would run code from the file, or it is '
            'damaged. Save it again with plain values or as a state dict only; if you trust whoever wrote it, '
            'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 in the environment has it unpickled.') from error


class _Unreadable(ValueError):
    """Says in a few words why a file is refused."""


class _StandIn:
    """A value that is no plain data, by the name of its class and what it would be made of; nothing is called."""

    name = ''
    args: tuple
    state: Any

    def __new__(cls, *args: object) -> '_StandIn':
        stand_in = super().__new__(cls)
        stand_in.args, stand_in.state = args, None
        return stand_in

    def __init__(self, *args: object) -> None:
        del args

    def __setstate__(self, state: object) -> None:
        self.state = state


def _read_torch(file: str | Path | BinaryIO, map_location: Any = 'cpu') -> Any:
    """Read a file of ``torch.save``, with stand-ins for what is no plain data."""
    try:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        except ValueError:  # not torch's zip format: plain weights or nothing
            names = []
        names = [name for name in names if name.startswith(_STAND_IN_ROOTS)]
        stand_ins: list[Any] = [(type('_StandIn', (_StandIn, ), dict(name=name)), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            if hasattr(file, 'seek'):
                file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged file: torch's reader raises whatever it stumbles over
        lines = [line.strip() for line in str(error).splitlines()]  # without torch's advice to read it unsafely
        lines = [line for line in lines if line and 'weights_only' not in line and 'Weights only' not in line]
        raise _Unreadable(lines[0].split('. ')[0].rstrip('.') if lines else type(error).__name__) from error


def _rebuild(value: Any) -> Any:
    """Put the known kinds of values in the place of their stand-ins, in the containers that hold them.

    Raises:
        ValueError: If a stand-in is of no known kind.
    """
    if isinstance(value, dict):
        for key in value:
            value[key] = _rebuild(value[key])
        return value
    if isinstance(value, list):
        value[:] = map(_rebuild, value)
        return value
    if type(value) is tuple:
        return tuple(map(_rebuild, value))
    if isinstance(value, type) and issubclass(value, _StandIn):
        raise _Unreadable(f'it holds the class {value.name}')
    if not isinstance(value, _StandIn):
        return value
    match value.name.replace('numpy.core.', 'numpy._core.'), value.args, value.state:
        case 'numpy.dtype', (code, *_), state:
            dtype = np.dtype(code)
            if dtype.kind in 'biufcSU':  # no object is read from raw bytes
                return dtype.newbyteorder(state[1]) if state else dtype
        case 'builtins.bytes', (), None:  # what protocol 2 writes for no bytes at all
            return b''
        case 'numpy._core.multiarray._reconstruct', _, (_, shape, dtype, fortran, data):
            order: Literal['F', 'C'] = 'F' if fortran else 'C'
            data = _rebuild(data)
            array = np.frombuffer(data, _rebuild(dtype)) if data else np.empty(0, _rebuild(dtype))
            return array.reshape(shape, order=order).copy(order)
        case 'numpy._core.multiarray.scalar', (dtype, bytes() as data), _:
            return np.frombuffer(data, _rebuild(dtype))[0]
        case 'mmengine.logging.history_buffer.HistoryBuffer', _, dict() as state:
            from mmengine.logging import HistoryBuffer  # its statistics are methods of the class: not the file's to say
            return HistoryBuffer(_rebuild(state['_log_history']), _rebuild(state['_count_history']),
                                 state['max_length'])
        case 'mmengine.config.config.ConfigDict', (dict() as content, ), _:
            from mmengine.config import ConfigDict
            return ConfigDict(_rebuild(content))
        case 'builtins.getattr', (type() as owner, '_annealing_cos' | '_annealing_linear' as function), _:
            if getattr(owner, 'name', '') == 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler':
                from mmengine.optim import OneCycleParamScheduler
                return getattr(OneCycleParamScheduler, function)
    raise _Unreadable(f'it holds a {value.name}')
