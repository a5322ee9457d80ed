"""ManifestDataset: images, masks, prompts and references from a JSON-lines manifest or from folders.

One line of a manifest, paths relative to ``data_root`` (the format of the TISynth and TODSynth releases)::

    {"source": "masks/a.png", "target": "images/a.jpg", "prompt": "a satellite image of road", "ref_image": "ref/b.jpg"}
"""
import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike

from mmengine import fileio
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset

from mmsynth.datasets.records import Record, parse_manifest, read_meta_file, read_text
from mmsynth.datasets.seeded import SeededItems
from mmsynth.registry import DATASETS
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.utils.messages import first_few

_MANIFEST_SUFFIXES = ('.jsonl', '.json')
_PREFIX_KEYS = ('img_path', 'seg_map_path')


@DATASETS.register_module()
class ManifestDataset(SeededItems, BaseSegDataset):
    """Masks with what belongs to each: an image, a prompt, a reference image; only the mask is required.

    ``ann_file`` chooses the source:

    - ``.jsonl`` / ``.json``: a manifest, one JSON object per line. ``source`` (mask) is required; ``target`` (image),
      ``prompt`` and ``ref_image`` are optional, other keys are left alone, blank lines are skipped. Paths are relative
      to ``data_root`` (the manifest's folder without one) and may not lead out of it; links inside it are followed.
    - empty: the folders of ``data_prefix``, as in mmseg; every image needs its mask.
    - ``.txt``: those folders, restricted to the names listed, one per line, without suffix.

    A sample's info holds ``seg_map_path``; ``img_path``, ``prompt`` and ``reference_path`` where there is one;
    ``sample_id``, the mask's path below ``data_root`` without suffix ('#1', '#2' … follow where a mask is listed
    again); ``label_map``, ``reduce_zero_label`` and ``seg_fields`` as in mmseg; and for the transforms
    ``ignore_index``, ``classes`` (the names of the ids *after* ``label_map``) and ``num_classes`` (the count of ids
    *before* it, as they stand in the files). The last two are absent where no class names are known.

    Args:
        ann_file: Manifest or list of names, relative to ``data_root``; empty for whole folders.
        img_suffix: End of image names (folders only).
        seg_map_suffix: End of mask names (folders only).
        metainfo: Replaces entries of METAINFO; a subset of its classes gives the ``label_map``, as in mmseg.
        data_root: Where relative paths start.
        data_prefix: The folders ``img_path`` and ``seg_map_path`` (folders only).
        indices: Use only the first so many records, or those listed.
        serialize_data: Keep the records in one buffer that workers share.
        pipeline: The transforms.
        test_mode: The host's test mode.
        lazy_init: Read the records at first use.
        max_refetch: How often a sample that the pipeline refused is replaced by another.
        ignore_index: Value of unlabelled pixels in the files; may be beyond 255 in 16-bit files.
        reduce_zero_label: Value 0 is unlabelled and value k is class k - 1.
        backend_args: The host's file backend.
        masks_only: Leave the images out, for synthesis; an image folder is not needed then.
        meta_file: JSON file with ``classes`` and, optionally, ``palette``, relative to ``data_root``.

    Raises:
        ValueError: If options contradict each other, or a manifest line is not as above; names file and lines.
        FileNotFoundError: If a file or folder is missing, or there is not a single record.
    """

    def __init__(self,
                 ann_file: str = '',
                 img_suffix: str = '.jpg',
                 seg_map_suffix: str = '.png',
                 metainfo: Mapping | None = None,
                 data_root: str | None = None,
                 data_prefix: Mapping[str, str | None] | None = None,
                 indices: int | Sequence[int] | None = None,
                 serialize_data: bool = True,
                 pipeline: Sequence[dict | Callable] | None = None,
                 test_mode: bool = False,
                 lazy_init: bool = False,
                 max_refetch: int = 1000,
                 ignore_index: int = IGNORE_INDEX,
                 reduce_zero_label: bool = False,
                 backend_args: dict | None = None,
                 masks_only: bool = False,
                 meta_file: str | None = None) -> None:
        prefix = dict.fromkeys(_PREFIX_KEYS, '') | {key: value or '' for key, value in (data_prefix or {}).items()}
        _check_source(ann_file, prefix, data_root)
        if meta_file is not None:
            path = fileio.join_path(data_root, meta_file) if data_root else meta_file
            metainfo = _add_meta_file(self.METAINFO, metainfo, path, backend_args)
        self.masks_only = masks_only
        self._mask_prefix = _id_prefix(prefix['seg_map_path'])
        super().__init__(
            ann_file=ann_file,
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            metainfo=metainfo,
            data_root=data_root,
            data_prefix=prefix,
            indices=indices,
            serialize_data=serialize_data,
            pipeline=list(pipeline or ()),
            test_mode=test_mode,
            lazy_init=lazy_init,
            max_refetch=max_refetch,
            ignore_index=ignore_index,
            reduce_zero_label=reduce_zero_label,
            backend_args=backend_args)

    def load_data_list(self) -> list[dict]:
        """The info of every sample, in the manifest's order, or by name."""
        records = self._manifest_records() if self.ann_file.endswith(_MANIFEST_SUFFIXES) else self._folder_records()
        self._check_files(records)
        common = self._common_info()
        return [record.paths() | dict(sample_id=sample_id, seg_fields=[]) | common
                for record, sample_id in zip(records, _unique_ids(records))]

    def _common_info(self) -> dict:
        info = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label, ignore_index=self.ignore_index)
        classes = self._metainfo.get('classes')
        if classes is not None:
            stored = classes if self.label_map is None else self.METAINFO['classes']
            info.update(classes=tuple(classes), num_classes=len(stored))
        return info

    def _manifest_records(self) -> list[Record]:
        root = self.data_root or posixpath.dirname(self.ann_file)
        records = parse_manifest(self.ann_file, root, self.backend_args)
        if not records:
            raise FileNotFoundError(f'`ann_file` {self.ann_file} has no records; write one JSON object per line, such '
                                    'as {"source": "masks/a.png", "target": "images/a.jpg"}.')
        if self.masks_only:
            return [replace(record, image=None) for record in records]
        bare = [record.where for record in records if record.image is None]
        if 0 < len(bare) < len(records):
            raise ValueError(f"{self.ann_file}: {first_few(bare)} without 'target' (image), though other lines have "
                             'one; add it, or set `masks_only=True` to use the masks alone.')
        return records

    def _folder_records(self) -> list[Record]:
        folder, suffix = self._listed_folder()
        stems = self._split_names() if self.ann_file else self._stems(folder, suffix)
        records = []
        for stem in stems:
            mask = fileio.join_path(self.data_prefix['seg_map_path'], stem + self.seg_map_suffix)
            image = None if self.masks_only else fileio.join_path(self.data_prefix['img_path'], stem + self.img_suffix)
            mask_id = posixpath.join(self._mask_prefix, stem + self.seg_map_suffix)
            records.append(Record(mask=mask, mask_id=mask_id, image=image, where=f'{stem!r}'))
        if not self.masks_only and not self.ann_file:
            self._warn_of_lone_masks(stems)
        return records

    def _listed_folder(self) -> tuple[str, str]:
        """The folder whose files name the samples, and their suffix."""
        key, suffix = ('seg_map_path', self.seg_map_suffix) if self.masks_only else ('img_path', self.img_suffix)
        for name in dict.fromkeys((key, 'seg_map_path')):
            if not fileio.isdir(self.data_prefix[name], backend_args=self.backend_args):
                raise FileNotFoundError(f'`data_prefix.{name}`: there is no folder {self.data_prefix[name]}; correct '
                                        'it or `data_root`.')
        return self.data_prefix[key], suffix

    def _stems(self, folder: str, suffix: str) -> list[str]:
        stems = self._list_stems(folder, suffix)
        if not stems:
            option = 'seg_map_suffix' if self.masks_only else 'img_suffix'
            files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True, backend_args=self.backend_args)
            counts = Counter(posixpath.splitext(name)[1] or 'no suffix' for name in files)
            found = ', '.join(f'{count} of {end}' for end, count in counts.most_common(3)) or 'none at all'
            raise FileNotFoundError(f'{folder} has no file that ends in {suffix!r} (`{option}`); files there: {found}. '
                                    f'Correct `{option}` or `data_prefix`.')
        return stems

    def _list_stems(self, folder: str, suffix: str) -> list[str]:
        names = fileio.list_dir_or_file(
            folder, list_dir=False, suffix=suffix, recursive=True, backend_args=self.backend_args)
        return sorted(name[:len(name) - len(suffix)].replace('\\', '/') for name in names)

    def _split_names(self) -> list[str]:
        names = [line.strip() for line in read_text(self.ann_file, self.backend_args).split('\n')]
        names = [name for name in names if name]
        if not names:
            raise FileNotFoundError(f'`ann_file` {self.ann_file} lists no names; write one per line, without suffix.')
        return names

    def _check_files(self, records: Sequence[Record]) -> None:
        known: dict[str, bool] = {}
        missing = []
        for record in records:
            for path in record.files():
                if path not in known:
                    known[path] = fileio.isfile(path, backend_args=self.backend_args)
                if not known[path]:
                    missing.append(f'{path} ({record.role(path)} of {record.where})')
        if missing:
            source = f'{self.ann_file}: ' if self.ann_file else ''
            raise FileNotFoundError(f'{source}{len(missing)} file(s) missing: {first_few(missing)}. Add them, drop '
                                    'their records, or correct `data_root`, `data_prefix` or the suffixes.')

    def _warn_of_lone_masks(self, stems: Sequence[str]) -> None:
        lone = sorted(set(self._list_stems(self.data_prefix['seg_map_path'], self.seg_map_suffix)) - set(stems))
        if lone and self.data_prefix['seg_map_path'] != self.data_prefix['img_path']:
            print_log(
                f'{len(lone)} masks in {self.data_prefix["seg_map_path"]} have no image ending in '
                f'{self.img_suffix!r} and are left out: {first_few(lone)}',
                logger='current',
                level=logging.WARNING)


def _check_source(ann_file: str, prefix: Mapping[str, str], data_root: str | None) -> None:
    if not isinstance(data_root, (str, PathLike, type(None))):
        raise TypeError(f'`data_root` must be a path, got {data_root!r}.')
    unknown = sorted(set(prefix) - set(_PREFIX_KEYS))
    if unknown:
        raise ValueError(f'`data_prefix` has the keys {" and ".join(_PREFIX_KEYS)}, got {", ".join(unknown)}.')
    if ann_file.endswith(_MANIFEST_SUFFIXES):
        if any(prefix.values()):
            raise ValueError(f'`data_prefix` {dict(prefix)} has no effect with the manifest {ann_file}, whose paths '
                             'start at `data_root`; leave it out.')
    elif ann_file and not ann_file.endswith('.txt'):
        raise ValueError(f'`ann_file` must end in .jsonl or .json (manifest) or .txt (names), got {ann_file!r}.')
    elif not (data_root or prefix['seg_map_path']):
        raise ValueError('it is not known where the masks are: give `data_root`, `data_prefix.seg_map_path`, or a '
                         'manifest as `ann_file`.')


def _add_meta_file(declared: Mapping, metainfo: Mapping | None, path: str, backend_args: dict | None) -> dict:
    """Return METAINFO's replacement, with the entries of the file.

    Raises:
        ValueError: If the class or the option has other values.
    """
    merged = dict(metainfo or {})
    for key, value in read_meta_file(path, backend_args).items():
        for source, given in (('`metainfo`', merged), ("the class's METAINFO", declared)):
            if key in given and [_plain(item) for item in given[key]] != [_plain(item) for item in value]:
                raise ValueError(f'`meta_file` {path} and {source} disagree about {key}: {list(value)} and '
                                 f'{list(given[key])}; leave one of them out.')
        merged[key] = value
    return merged


def _plain(item: str | Sequence[int]) -> str | list[int]:
    return item if isinstance(item, str) else list(item)


def _id_prefix(prefix: str) -> str:
    """What stands before a mask's name in its sample id: the mask folder, if that lies below the root."""
    folder = posixpath.normpath(prefix.replace('\\', '/')) if prefix else ''
    return '' if folder in ('', '.') or folder.startswith(('/', '..')) or ':' in folder else folder


def _unique_ids(records: Sequence[Record]) -> Iterator[str]:
    """The sample ids, in order; a repeated mask gets '#1', '#2' … appended."""
    taken: set[str] = set()
    repeats: Counter[str] = Counter()
    for record in records:
        plain = sample_id = posixpath.splitext(record.mask_id)[0]
        while sample_id in taken:
            repeats[plain] += 1
            sample_id = f'{plain}#{repeats[plain]}'
        taken.add(sample_id)
        yield sample_id
