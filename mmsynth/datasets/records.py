"""What stands in a manifest and in a metadata file, read as data from outside: checked, with the place in messages."""
import json
import ntpath
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine import fileio

from mmsynth.utils.messages import first_few


@dataclass(frozen=True)
class Record:
    """A mask and what belongs to it.

    Attributes:
        mask: Path of the mask.
        mask_id: Path of the mask below the data root, for the sample's id.
        where: Where the record stands, for messages.
        image: Path of the image.
        reference: Path of the reference image.
        prompt: The text.
    """

    mask: str
    mask_id: str
    where: str
    image: str | None = None
    reference: str | None = None
    prompt: str | None = None

    def paths(self) -> dict[str, str]:
        """What is known, by the keys of a pipeline."""
        values = dict(
            img_path=self.image, seg_map_path=self.mask, reference_path=self.reference, prompt=self.prompt)
        return {key: value for key, value in values.items() if value is not None}

    def files(self) -> list[str]:
        return [path for path in (self.mask, self.image, self.reference) if path is not None]

    def role(self, path: str) -> str:
        return 'mask' if path == self.mask else 'image' if path == self.image else 'reference'


def parse_manifest(path: str, root: str, backend_args: dict | None = None) -> list[Record]:
    """Read a manifest; its paths start at ``root``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If lines are not as they should be; one message for all of them, with their numbers.
    """
    records, problems = [], []
    for number, line in enumerate(read_text(path, backend_args).split('\n'), start=1):
        if not line.strip():
            continue
        try:
            records.append(_parse_line(line, root, f'line {number}'))
        except ValueError as error:
            problems.append(f'line {number}: {error}')
    if problems:
        raise ValueError(f'{path}: {first_few(problems, separator="; ")}. Every line must be one JSON object with '
                         "'source' (mask) and, where there are such, 'target' (image), 'prompt' and 'ref_image'; paths "
                         'relative to the data root and inside it.')
    return records


def read_meta_file(path: str, backend_args: dict | None = None) -> dict[str, Sequence]:
    """Read ``classes`` (tuple of names) and, where given, ``palette`` (list of [r, g, b]) from a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an object with these.
    """
    try:
        meta = json.loads(read_text(path, backend_args))
    except json.JSONDecodeError as error:
        raise ValueError(f'`meta_file` {path} is not JSON: {error}.') from error
    classes = meta.get('classes') if isinstance(meta, dict) else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"`meta_file` {path} must be an object with 'classes', a list of names; got {classes!r:.60}.")
    if len(set(classes)) < len(classes):
        raise ValueError(f'`meta_file` {path} names a class twice: {", ".join(classes)}.')
    palette = meta.get('palette')
    if palette is None:
        return dict(classes=tuple(classes))
    if not isinstance(palette, list) or len(palette) != len(classes) or not all(map(_is_colour, palette)):
        raise ValueError(f"`meta_file` {path}: 'palette' must have one [r, g, b] in 0 … 255 for each of the "
                         f'{len(classes)} classes.')
    return dict(classes=tuple(classes), palette=palette)


def read_text(path: str, backend_args: dict | None = None) -> str:
    """Read a UTF-8 file, with or without byte-order mark.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8.
    """
    if not fileio.isfile(path, backend_args=backend_args):
        raise FileNotFoundError(f'{path} does not exist; paths of a config start at `data_root`.')
    try:
        return fileio.get_text(path, encoding='utf-8-sig', backend_args=backend_args)
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 text: {error}. Save it as UTF-8.') from error


def _parse_line(line: str, root: str, where: str) -> Record:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'not JSON ({error})') from error
    if not isinstance(value, dict):
        raise ValueError(f'must be a JSON object, got {line.strip()!r:.60}')
    if value.get('source') is None:
        raise ValueError(f"has no 'source' (mask); its keys: {', '.join(map(repr, value)) or 'none'}")
    prompt = value.get('prompt')
    if not (prompt is None or isinstance(prompt, str)):
        raise ValueError(f"'prompt' must be text, got {prompt!r:.60}")
    inside = {key: _inside(key, value[key]) for key in ('source', 'target', 'ref_image') if value.get(key) is not None}
    paths = {key: fileio.join_path(root, path) if root else path for key, path in inside.items()}
    return Record(mask=paths['source'], mask_id=inside['source'], where=where, image=paths.get('target'),
                  reference=paths.get('ref_image'), prompt=prompt)


def _inside(key: str, path: object) -> str:
    """The normalised path, if it cannot lead out of the folder that it starts in."""
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f'{key!r} must be a path, got {path!r:.60}')
    normal = posixpath.normpath(path)
    windows = ntpath.normpath(path)  # a manifest may have been written there, or may be read there
    if '..' in (normal.split('/')[0], windows.split('\\')[0]) or ntpath.splitdrive(windows)[0] \
            or normal.startswith('/') or windows.startswith('\\'):
        raise ValueError(f'{key!r} leads out of the data root: {path!r:.200}')
    if '\0' in path or normal == '.':
        raise ValueError(f'{key!r} is no file name: {path!r:.60}')
    return normal


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(x) is int and 0 <= x <= 255 for x in value)
