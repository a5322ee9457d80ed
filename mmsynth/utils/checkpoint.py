"""Reading weights from files as data, and loading them strictly with a report. Nothing in a file is ever run."""
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


class _Inert:
    """Stands for what mmengine stores beside weights (log history, numpy scalars): read over, never rebuilt."""

    def __init__(self, *args: object) -> None:
        del args

    def __setstate__(self, state: object) -> None:
        del state


# what the host keeps beside the weights: log history, scheduler state, numpy scalars
_INERT_ROOTS = ('mmengine.', 'numpy.', 'builtins.getattr')


@dataclass
class LoadReport:
    """What came of loading a state dict.

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
                shown = ', '.join(keys[:5]) + (f', … ({len(keys) - 5} more)' if len(keys) > 5 else '')
                lines.append(f'{len(keys)} {title}: {shown}')
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
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f'checkpoint {path} cannot be read as safetensors: {error}.') from error


def _read_torch(path: Path) -> object:
    try:
        names = [name for name in _globals_in(path) if name.startswith(_INERT_ROOTS)]
        with torch.serialization.safe_globals([_Inert, *((_Inert, name) for name in names)]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged file: torch's reader raises whatever it stumbles over
        lines = [line.strip() for line in str(error).splitlines()]  # without torch's advice to read it unsafely
        lines = [line for line in lines if line and 'weights_only' not in line and 'Weights only' not in line]
        reason = lines[0].split('. ')[0].rstrip('.') if lines else type(error).__name__
        raise ValueError(f'checkpoint {path} cannot be read as plain weights: {reason}. Reading it would run code from '
                         'the file or it is damaged; save it again as a state dict or as safetensors.') from error


def _globals_in(path: Path) -> list[str]:
    """The names that a file asks for beyond plain weights; nothing is loaded."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # not torch's zip format: plain weights or nothing
        return []
