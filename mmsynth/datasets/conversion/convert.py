"""Convert labelled images to the folders that configs read: check, cut into tiles, write all of it or nothing.

Two layouts are written, with 8-bit class ids in the masks::

    'manifest'   OUT/images/*  OUT/masks/*.png  OUT/{train,val,test}.jsonl  OUT/meta.json      255 = no label
    'folders'    OUT/img_dir/PART/*.png  OUT/ann_dir/PART/*.png  OUT/meta.json

``mmsynth.ManifestDataset`` and ``make demo`` read the first, data sets of mmseg the second. Images without masks lie in
OUT/unlabelled/ and OUT/img_dir/PART/. The folder appears when it is complete; a killed run leaves one called .tmp-OUT,
which the next run clears.

Legend: H W pixels of a tile, K classes.
"""
import json
import os
import shutil
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mmsynth.datasets.conversion.class_table import ClassTable
from mmsynth.datasets.conversion.files import SourceFile
from mmsynth.datasets.conversion.fit import check_fit
from mmsynth.datasets.conversion.picture import Stretch, StretchRule, picture_bands, read_picture
from mmsynth.datasets.conversion.raster import Raster, open_raster
from mmsynth.datasets.conversion.split import check_places
from mmsynth.datasets.conversion.summary import PartSummary, Summary
from mmsynth.datasets.conversion.tiling import Window, windows
from mmsynth.utils import derive_seed, progress_bar
from mmsynth.utils.files import atomic_path, encode_png
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.utils.messages import first_few

Layout = Literal['manifest', 'folders']
Uint8 = NDArray[np.uint8]

_SHOWN = 8


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        name: What its files will be called, without suffix.
        image: The image.
        mask: The mask; None for an unlabelled image.
        part: 'train', 'val' or 'test'.
        place: What it has in common with its neighbours; no place may be in two parts.
        also: Folders for images and for masks where an uncut image is to appear too, by hard links.
    """

    name: str
    image: SourceFile
    mask: SourceFile | None
    part: str
    place: str
    also: tuple[str, str] | None = None


@dataclass(frozen=True)
class Recipe:
    """How a set is converted.

    Attributes:
        title: The set's name.
        table: Its classes, and what stands for them in the masks.
        layout: What is written.
        tile_size: Side of the tiles; None for whole images.
        stride: From one tile to the next; by default ``tile_size``.
        min_labelled: Tiles with a smaller labelled share are left out, those without any label always; in [0, 1].
        bands: Which bands are red, green and blue, from 1; by default those of 3-band and grey images.
        stretch: How other images become 8-bit ones.
        unknown_labels: On a label that the table does not know 'refuse' the set, or 'ignore' the pixels.
        zero_is_ignored: Write 0 for no label and id + 1 for a class, as sets with ``reduce_zero_label=True`` have it.
        mask_suffix: End of the names of masks.
        references: Write synthesis.jsonl with an image of another place as the reference of each training mask
            ('manifest' only).
        about: What else goes into meta.json.
    """

    title: str
    table: ClassTable
    layout: Layout = 'manifest'
    tile_size: int | None = None
    stride: int | None = None
    min_labelled: float = 0.0
    bands: tuple[int, ...] | None = None
    stretch: StretchRule = StretchRule()
    unknown_labels: Literal['refuse', 'ignore'] = 'refuse'
    zero_is_ignored: bool = False
    mask_suffix: str = '.png'
    references: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        windows((1, 1), self.tile_size, self.stride)
        if not 0 <= self.min_labelled <= 1:
            raise ValueError(f'`min_labelled` must be in [0, 1], got {self.min_labelled}.')
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ValueError(f'`bands` must be one or three numbers from 1, got {self.bands}.')


def convert(pairs: Sequence[Pair], recipe: Recipe, out: str | Path, *, dry_run: bool = False) -> Summary:
    """Convert a set.

    Args:
        pairs: Its images.
        recipe: How.
        out: The folder to write; it may not exist, or must be empty.
        dry_run: Read and check everything, write nothing.

    Returns:
        What was found and written.

    Raises:
        FileExistsError: If ``out`` is there already.
        ValueError: If images, masks and the class table do not fit; one message for all files concerned.
        RuntimeError: If another process is writing ``out``.
    """
    out = Path(out)
    if not dry_run and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'`out_dir`: {out} is there already and is not overwritten; choose another folder, or '
                              'remove it first.')
    check_places([(pair.place, pair.part) for pair in pairs])
    _check_names(pairs)
    jobs = _plan(pairs, recipe)
    summary = Summary(f'{recipe.title}{" (dry run: nothing is written)" if dry_run else ""}', recipe.table.classes)
    problems = []
    with nullcontext() if dry_run else atomic_path(out, folder=True) as folder:
        writer = _Writer(folder, recipe)
        total = sum(len(job.windows) for job in jobs)
        with progress_bar(total=total, unit='tile', title='checking' if dry_run else 'converting') as bar:
            for job in jobs:
                try:
                    _convert_pair(job, recipe, writer, summary.part(job.pair.part))
                except ValueError as error:
                    problems.append(str(error))
                bar.update(len(job.windows))
        _refuse(f'{recipe.title} cannot be converted', problems)
        if not any(part.tiles for part in summary.parts.values()):
            raise ValueError(f'{recipe.title}: no tile has enough labels to be kept; give a lower `min_labelled` than '
                             f'{recipe.min_labelled}, or name the values of the masks in the class table.')
        if folder is not None:
            writer.finish(summary, jobs[0].stretch if recipe.stretch.over == 'set' else None)
    return summary


@dataclass(frozen=True)
class _Job:
    """A pair with the windows that it is cut into, and how its values become 0 … 255 (None: as they are)."""

    pair: Pair
    windows: list[Window]
    stretch: Stretch | None


def _convert_pair(job: _Job, recipe: Recipe, writer: '_Writer', part: PartSummary) -> None:
    """Check and write the tiles of an image.

    Raises:
        ValueError: If a file is damaged, or the mask holds labels that the table does not know.
    """
    pair, side = job.pair, recipe.tile_size
    unknown_values: Counter[str] = Counter()
    part.images += 1
    with open_raster(pair.image) as image, _open_mask(pair) as mask:
        bands = picture_bands(image, recipe.bands)
        copied = side is None and job.stretch is None and _may_be_copied(image, recipe)
        for window in job.windows:
            picture, valid = read_picture(image, window, bands, job.stretch)
            ids, unknown = None, 0
            if mask is not None:
                ids, unknown = _read_ids(mask, window, recipe.table, unknown_values)
                ids[~valid] = IGNORE_INDEX
                labelled = np.count_nonzero(ids != IGNORE_INDEX) / ids.size
                if labelled == 0 or labelled < recipe.min_labelled:
                    part.dropped += 1
                    continue
            if side is not None and min(picture.shape[:2]) < side:
                picture, ids = _fill_up(picture, ids, side)
                part.padded += 1
            part.tiles += 1
            part.unknown += unknown
            if ids is not None:
                part.add(ids)
            name = pair.name if side is None else f'{pair.name}_y{window.top:05d}_x{window.left:05d}'
            writer.write(pair, name, picture, ids, copied)
    if unknown_values and recipe.unknown_labels == 'refuse':
        listed = first_few(f'{value} in {count} pixels' for value, count in unknown_values.most_common())
        way = '' if recipe.table.colours is None else ', give a larger `colour_tolerance`'
        raise ValueError(f'{pair.mask} holds labels that the class table does not know: {listed}. Name them in the '
                         f'table, as a class or as "ignore"{way}, or set `unknown_labels` to ignore')


@contextmanager
def _open_mask(pair: Pair) -> Iterator[Raster | None]:
    if pair.mask is None:
        yield None
        return
    with open_raster(pair.mask) as mask:
        yield mask


def _read_ids(mask: Raster, window: Window, table: ClassTable, unknown_values: Counter[str]) -> tuple[Uint8, int]:
    """Class ids of a window (H, W), and how many pixels of it have an unknown label; the values are added up."""
    raw = mask.read(window)
    known_empty = ~mask.has_data(raw)  # 'no data' of the file is no label, unless the table says what it is
    if table.colours is not None and mask.palette is not None:
        raw = mask.palette[raw[..., 0]]
    ids, unknown = table.encode(raw, str(mask.file))
    unknown &= ~known_empty
    count = int(np.count_nonzero(unknown))
    if count:
        new = unknown.copy()  # overlapping tiles: count each pixel of the file once
        new[:window.seen_rows] = new[:, :window.seen_columns] = False
        unknown_values.update(table.unknown_values(raw, new, str(mask.file)))
    return ids, count


def _fill_up(picture: Uint8, ids: Uint8 | None, side: int) -> tuple[Uint8, Uint8 | None]:
    """Fill a small tile up at the right and bottom, black and without labels."""
    height, width = picture.shape[:2]
    missing = ((0, side - height), (0, side - width))
    picture = np.pad(picture, (*missing, (0, 0)))
    return picture, None if ids is None else np.pad(ids, missing, constant_values=IGNORE_INDEX)


def _may_be_copied(image: Raster, recipe: Recipe) -> bool:
    """Whether the file itself is what would be written."""
    suffixes = ('.png', '.jpg', '.jpeg') if recipe.layout == 'manifest' else ('.png', )
    return (image.file.suffix in suffixes and image.bands == 3 and image.dtype == np.uint8 and recipe.bands is None
            and not image.turned)


# ---- before anything is written


def _plan(pairs: Sequence[Pair], recipe: Recipe) -> list[_Job]:
    """Check the headers of all files, cut the images into windows and find the stretch.

    Raises:
        ValueError: If files are damaged or do not fit each other; one message for all of them.
    """
    cut, dtypes, samples, problems = [], [], [], []
    for pair in progress_bar(pairs, unit='image', title='looking'):
        try:
            with open_raster(pair.image) as image, _open_mask(pair) as mask:
                if mask is not None:
                    check_fit(image, mask)
                bands = picture_bands(image, recipe.bands)
                cut.append(windows(image.size, recipe.tile_size, recipe.stride))
                dtypes.append(image.dtype)
                sample = None
                if bands is not None and recipe.stretch.needed(image.dtype, pair.image):
                    limit = StretchRule.NUM_PIXELS // (len(pairs) if recipe.stretch.over == 'set' else 1)
                    sample = np.zeros((0, 3)) if recipe.stretch.value_range is not None else image.sample(
                        bands, max(limit, 1000))
                samples.append(sample)
        except ValueError as error:
            problems.append(str(error))
    _refuse(f'{recipe.title} cannot be converted', problems)
    kinds = {(dtype == np.uint8): str(pair.image) for dtype, pair in zip(dtypes, pairs)}
    if recipe.stretch.kind == 'auto' and len(kinds) > 1:
        raise ValueError(f'{kinds[True]} has 8 bits and {kinds[False]} has not; say by `stretch` how images become '
                         "8-bit ones: 'percentile' or 'range'.")
    return [_Job(pair, parts, stretch) for pair, parts, stretch in zip(pairs, cut, _stretches(samples, recipe.stretch))]


def _stretches(samples: Sequence[NDArray | None], rule: StretchRule) -> list[Stretch | None]:
    found = [sample for sample in samples if sample is not None]
    if rule.over == 'image':
        return [None if sample is None else rule.of_samples([sample]) for sample in samples]
    common = rule.of_samples(found) if found else None
    return [None if sample is None else common for sample in samples]


def _check_names(pairs: Sequence[Pair]) -> None:
    if not pairs:
        raise ValueError('there is not a single image to convert.')
    named: dict[str, Pair] = {}
    problems = []
    for pair in pairs:
        assert '/' not in pair.name and pair.name
        other = named.setdefault(pair.name.lower(), pair)  # some file systems take upper and lower case for the same
        if other is not pair:
            problems.append(f'{other.image} and {pair.image} would both be called {pair.name}; rename one')
    _refuse('names must differ', problems)


def _refuse(what: str, problems: Sequence[str]) -> None:
    if problems:
        more = [f'… and {len(problems) - _SHOWN} more'] if len(problems) > _SHOWN else []
        raise ValueError('\n- '.join([f'{what}:', *problems[:_SHOWN], *more]))


# ---- writing


class _Writer:
    """Writes the files of one layout into a folder; nothing where that is None."""

    def __init__(self, folder: Path | None, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.lines: dict[str, list[tuple[str, dict[str, str]]]] = {}  # part → (place, line of the manifest)

    def write(self, pair: Pair, name: str, picture: Uint8, ids: Uint8 | None, copied: bool) -> None:
        """Write a tile: picture (H, W, 3), RGB, and ids (H, W), 0 … K - 1 or 255; or copy the image's own file."""
        if self.folder is None:
            return
        suffix = pair.image.suffix if copied else '.png'
        image, mask = f'{name}{suffix}', f'{name}{self.recipe.mask_suffix}'
        if self.recipe.layout == 'folders':
            image, mask = f'img_dir/{pair.part}/{image}', f'ann_dir/{pair.part}/{mask}'
        else:
            image, mask = f'{"unlabelled" if ids is None else "images"}/{image}', f'masks/{mask}'
        self._put(image, pair.image.read_bytes() if copied else cv2.imencode('.png', picture[..., ::-1])[1].tobytes())
        if ids is not None:
            if self.recipe.zero_is_ignored:
                ids = np.where(ids == IGNORE_INDEX, 0, ids + 1).astype(np.uint8)
            self._put(mask, encode_png(ids))
            self.lines.setdefault(pair.part, []).append((pair.place, dict(source=mask, target=image)))
        if pair.also is not None:
            for path, twin in zip((image, mask)[:1 if ids is None else 2], pair.also):
                self._link(path, f'{twin}/{Path(path).name}')

    def finish(self, summary: Summary, stretch: Stretch | None) -> None:
        """Write the manifests, and meta.json last; it says by which stretch all images became 8-bit ones."""
        if self.recipe.layout == 'manifest':
            for part, lines in self.lines.items():
                self._put(f'{part}.jsonl', _json_lines(line for _, line in lines))
            if self.recipe.references:
                self._put('synthesis.jsonl', _json_lines(_with_references(self.lines.get('train', []))))
        recipe, table = self.recipe, self.recipe.table
        settings = {name: getattr(recipe, name) for name in (
            'layout', 'tile_size', 'stride', 'min_labelled', 'bands', 'unknown_labels', 'zero_is_ignored')}
        meta = dict(name=recipe.title, classes=table.classes, palette=table.palette, **recipe.about,
                    settings=settings | dict(stretch=asdict(recipe.stretch) | (asdict(stretch) if stretch else {})),
                    parts={name: part.to_dict(table.classes) for name, part in summary.parts.items()})
        self._put('meta.json', json.dumps(meta, indent=1).encode())

    def _put(self, name: str, content: bytes) -> None:
        assert self.folder is not None
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _link(self, name: str, twin: str) -> None:
        assert self.folder is not None
        (self.folder / twin).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.folder / name, self.folder / twin)
        except OSError:  # not on every file system
            shutil.copyfile(self.folder / name, self.folder / twin)


def _with_references(lines: Sequence[tuple[str, dict[str, str]]]) -> Iterator[dict[str, str]]:
    """Every mask with an image of another place; where there is but one place, with another image."""
    lines = sorted(lines, key=lambda item: (item[0], item[1]['source']))
    places = [place for place, _ in lines]
    for number, (place, line) in enumerate(lines):
        first, end = bisect_left(places, place), bisect_right(places, place)  # what may not be chosen
        if end - first == len(lines):
            first, end = number, number + 1
        if end - first < len(lines):
            chosen = derive_seed(0, 'reference', line['source']) % (len(lines) - (end - first))
            chosen += end - first if chosen >= first else 0
            yield dict(source=line['source'], ref_image=lines[chosen][1]['target'])


def _json_lines(lines: Iterator[dict[str, str]]) -> bytes:
    return ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines).encode()
