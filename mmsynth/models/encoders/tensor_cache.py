"""A folder of what an encoder made of its inputs, each encoded once: what the prompt and the latent cache share.

One safetensors file per input, named by the SHA-256 of the input's key and the encoder's identity; both stand in the
file's header, so a folder explains itself. Files appear complete or not at all: a killed run continues where it was.
"""
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmsynth.utils.files import atomic_write_all

_SUFFIX = '.safetensors'


@dataclass(frozen=True)
class CacheReport:
    """What filling a cache did.

    Attributes:
        folder: The cache's folder.
        identity: Identity of the encoder.
        inputs: What was encoded, in the plural.
        distinct: Distinct inputs that are needed; of a shard its share of them.
        encoded: How many of them were encoded now; the others were in the cache.
        size_bytes: Size of the files of these inputs.
    """

    folder: Path
    identity: str
    inputs: str
    distinct: int
    encoded: int
    size_bytes: int

    def __str__(self) -> str:
        return (f'{self.distinct} distinct {self.inputs}: {self.distinct - self.encoded} were cached, {self.encoded} '
                f'encoded; {self.size_bytes / 2**20:.1f} MiB in {self.folder} (encoder {self.identity})')


class TensorCache:
    """What one encoder made of its inputs, in a folder.

    Several encoders may share a folder; a cache sees what its own identity wrote.

    Args:
        folder: The cache's folder; created at the first write.
        identity: Of the encoder: a string that differs when its results do.

    Attributes:
        kind: What an input is called in headers and messages.
        fields: Names of the tensors of an input.
        command: What fills the cache.
    """

    kind: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    command: ClassVar[str]

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.folder = Path(folder)
        self.identity = identity

    @classmethod
    def identities(cls, folder: str | Path) -> list[str]:
        """The identities of the encoders that wrote into a folder, sorted; none if there is no such folder."""
        return sorted({cls._read_header(path)['identity'] for path in sorted(Path(folder).glob(f'*{_SUFFIX}'))})

    def keys(self) -> list[str]:
        """What is in the cache, sorted."""
        headers = (self._read_header(path) for path in sorted(self.folder.glob(f'*{_SUFFIX}')))
        return sorted(header[self.kind] for header in headers if header['identity'] == self.identity)

    def path(self, key: str) -> Path:
        """Where the tensors of an input are kept."""
        text = json.dumps([key, self.identity])
        return self.folder / (hashlib.sha256(text.encode()).hexdigest() + _SUFFIX)

    def has(self, key: str) -> bool:
        """Whether an input is in the cache."""
        return self.path(key).is_file()

    def read(self, key: str) -> dict[str, Tensor]:
        """Read the tensors of an input, on the CPU, in the dtype they were stored in.

        Raises:
            ValueError: If the input is not in the cache, or its file is damaged or of another input.
        """
        path = self.path(key)
        if not path.is_file():
            raise ValueError(f'{self.kind} {key!r} is not in the {self.kind} cache {self.folder} (encoder '
                             f'{self.identity}). Encode what the config needs with: {self.command}')
        header = self._read_header(path)
        if (header[self.kind], header['identity']) != (key, self.identity):
            raise ValueError(f'{path} holds the {self.kind} {header[self.kind]!r} of encoder {header["identity"]}, not '
                             f'{key!r} of {self.identity}: the file was renamed. Delete it and run: {self.command}')
        with safe_open(path, framework='pt') as file:
            return {name: file.get_tensor(name) for name in self.fields}

    def write(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store the tensors of several inputs, replacing what is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for key, tensors in entries.items():
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            files[self.path(key)] = save(plain, metadata={self.kind: key, 'identity': self.identity})
        atomic_write_all(files)

    @classmethod
    def _read_header(cls, path: Path) -> dict[str, str]:
        """The metadata of a cache file.

        Raises:
            ValueError: If the file is damaged or was not written by such a cache.
        """
        try:
            with safe_open(path, framework='pt') as file:
                header = file.metadata() or {}
                complete = {cls.kind, 'identity'} <= header.keys() and set(file.keys()) == set(cls.fields)
        except SafetensorError as error:
            raise ValueError(f'{path} is damaged ({error}). Delete it and run: {cls.command}') from error
        if not complete:
            raise ValueError(f'{path} was not written by a {cls.kind} cache; give the cache a folder of its own '
                             '(`cache_dir`).')
        return header
