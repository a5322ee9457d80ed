"""The files of a published archive: a folder as downloaded; a zip in it counts as unpacked in the folder it lies in."""
import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO


@dataclass(frozen=True)
class SourceFile:
    """A file, or a member of a zip.

    Attributes:
        key: Its path below the archive's folder, with '/', as if every zip were unpacked in the folder it lies in.
        path: The file, or the zip.
        member: Its name in the zip.
    """

    key: str
    path: Path
    member: str | None = None

    @property
    def suffix(self) -> str:
        """The end of its name, in lower case: '.tif'."""
        return PurePosixPath(self.key).suffix.lower()

    @property
    def gdal_path(self) -> str:
        """How GDAL names it."""
        return str(self.path) if self.member is None else f'/vsizip/{{{self.path.resolve()}}}/{self.member}'

    def open(self) -> IO[bytes]:
        """Open it for reading; seekable."""
        return self.path.open('rb') if self.member is None else _open_zip(self.path).open(self.member)

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()

    def buffer(self) -> IO[bytes]:
        """Open it for a decoder, which seeks: a member of a zip is read into memory first."""
        return self.path.open('rb') if self.member is None else io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f'{self.path}/{self.member}'


def list_files(source: str | Path) -> list[SourceFile]:
    """All files below a folder and inside the zips there, by key; a file that is there in both ways is listed once.

    Args:
        source: The folder, or one zip.

    Raises:
        FileNotFoundError: If there is no such folder or zip.
        ValueError: If a zip is damaged.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'`source`: there is no folder or zip {source}; give the folder of the archive.')
    root = source.parent if source.is_file() else source
    paths = [source] if source.is_file() else sorted(path for path in source.rglob('*') if path.is_file())
    found: dict[str, SourceFile] = {}
    for path in sorted(paths, key=lambda path: path.suffix.lower() == '.zip'):  # unpacked files come first, and win
        key = path.relative_to(root).as_posix()
        if path.suffix.lower() != '.zip':
            found[key] = SourceFile(key, path)
            continue
        folder = PurePosixPath(key).parent
        for member in _open_zip(path).namelist():
            if not member.endswith('/'):
                inside = (folder / member).as_posix()
                found.setdefault(inside, SourceFile(inside, path, member))
    hidden = ('.', '__MACOSX')  # what systems add: ._NAME, .DS_Store
    return [found[key] for key in sorted(found) if not any(part.startswith(hidden) for part in key.split('/'))]


@lru_cache(maxsize=32)
def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f'{path} cannot be read as a zip ({error}); download it again.') from error
