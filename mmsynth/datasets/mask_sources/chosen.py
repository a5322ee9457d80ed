"""ChosenMasks: masks chosen, and repeated, so that rare classes reach a wanted share or hard masks get more images."""
import bisect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.dataset import ConcatDataset
from mmengine.logging import print_log
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mmsynth.datasets.mask_sources.base import Mask, MaskReader, class_ids, sample_id, with_step
from mmsynth.registry import DATASETS
from mmsynth.utils.files import atomic_write
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.utils.progress import progress_bar

if TYPE_CHECKING:
    from mmsynth.filtering.mask_choice import MaskChoice


@dataclass(frozen=True)
class KeepStep:
    """Leave a mask as it is; records its id where it was chosen from.

    Attributes:
        mask: Its id there.
        rule: By what it was chosen.
    """

    mask: str
    rule: str

    def __call__(self, mask: Mask) -> tuple[Mask, dict[str, Any]]:
        return mask, dict(source='chosen', mask=self.mask, rule=self.rule)


@DATASETS.register_module()
class ChosenMasks(Dataset):
    """Masks of a data set, some of them, some repeated; for ``synthesis.dataset``.

    Either so that classes reach wanted shares of the labelled pixels (``target`` and ``count``, see
    :func:`~mmsynth.filtering.mask_choice.choose_masks`; every mask is loaded once to count its classes)::

        dataset=dict(type='mmsynth.ChosenMasks', target=dict(road=0.1), count=2000, dataset=dict(...))

    or each as often as a file says (``images_per_mask``, what tools/select_samples.py writes into a pool: more images
    for hard masks). Masks that the file does not name are left out.

    A repeated mask keeps its id the first time; then it is called 'NAME+draw2', 'NAME+draw3' …, and gets a seed and a
    reference of its own. (The '~2' of the images that ``num_per_mask`` generates stays free for those.)

    Args:
        dataset: The data set with the masks, or its config; a mask source too, or a ConcatDataset of several.
        target: Class name → wanted share, in [0, 1]; other classes may have any.
        count: Number of masks to choose, repeats counted.
        max_repeats: How often one mask may be chosen.
        seed: Decides between masks that are equally good.
        report_file: JSON file for the shares before, wanted and reached; they are logged in any case.
        images_per_mask: JSON file, mask id → number of images.

    Attributes:
        choice: The :class:`~mmsynth.filtering.mask_choice.MaskChoice`; None with ``images_per_mask``.

    Raises:
        ValueError: If not exactly one of ``target`` and ``images_per_mask`` is given, or options of the other; if a
            class or a mask's id is unknown, or the masks cannot be chosen so.
        FileNotFoundError: If ``images_per_mask`` does not exist.
    """

    def __init__(self,
                 dataset: Dataset | Mapping[str, Any],
                 target: Mapping[str, float] | None = None,
                 count: int | None = None,
                 max_repeats: int = 1,
                 seed: int = 0,
                 report_file: str | None = None,
                 images_per_mask: str | None = None) -> None:
        _check_options(target, count, images_per_mask, max_repeats, report_file)
        source: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self._readers = [MaskReader(part) for part in _parts(source)]
        self._ends = list(accumulate(len(reader) for reader in self._readers))
        self._metainfo = source.metainfo
        self.choice: MaskChoice | None = None
        if target is not None and count is not None:
            self._rule = 'target shares'
            indices = self._choose(target, count, max_repeats, seed)
            assert self.choice is not None
            print_log(f'{self.choice.count} masks chosen, {self.choice.distinct} different ones\n'
                      f'{self.choice.table()}', logger='current')
            if report_file is not None:
                Path(report_file).parent.mkdir(parents=True, exist_ok=True)
                atomic_write(report_file, (self.choice.to_json() + '\n').encode())
        else:
            assert images_per_mask is not None  # _check_options asks for one of the two
            self._rule = 'images per mask'
            indices = self._repeat(images_per_mask)
        # index, and how often it was drawn before; the first draw of every mask before all second ones
        pairs = [(int(index), draw) for index, times in zip(*np.unique(indices, return_counts=True))
                 for draw in range(times)]
        self._plan = sorted(pairs, key=lambda pair: (pair[1], pair[0]))

    @property
    def metainfo(self) -> dict[str, Any]:
        """Classes and palette of the data set inside."""
        return dict(self._metainfo)

    def full_init(self) -> None:
        """The masks are read on construction; nothing is left to do."""

    def __len__(self) -> int:
        return len(self._plan)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """What the pipeline starts from."""
        place = range(len(self))[idx]
        index, draw = self._plan[place]
        reader, inner = self._find(index)
        info = reader.info(inner)
        name = sample_id(info)
        info = with_step(info, name if draw == 0 else f'{name}+draw{draw + 1}', KeepStep(name, self._rule))
        return info | dict(sample_idx=place)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        index, _ = self._plan[range(len(self))[idx]]
        return self._find(index)[0].pipeline(self.get_data_info(idx))

    def _find(self, index: int) -> tuple[MaskReader, int]:
        """The part of the data set inside that holds a mask, and the mask's index there."""
        part = bisect.bisect_right(self._ends, index)
        return self._readers[part], index - (self._ends[part - 1] if part else 0)

    def _choose(self, target: Mapping[str, float], count: int, max_repeats: int, seed: int) -> NDArray[np.intp]:
        # not above: it imports guidance, which trainings on a data set do not need
        from mmsynth.filtering.mask_choice import MaskChoice, choose_masks
        classes = self._metainfo.get('classes') or ()
        class_ids(list(target), classes, 'target')  # that they are known
        counts = self._class_counts(len(classes))
        absent = [name for name, pixels in zip(classes, counts.sum(0)) if target.get(name) and not pixels]
        if absent:
            raise ValueError(f'`target` wants {", ".join(absent)}, which no mask shows; leave it out, or add masks '
                             'with it, for example by mmsynth.PastedMasks.')
        wanted = np.array([target.get(name, np.nan) for name in classes])
        indices = choose_masks(counts, wanted, count, max_repeats=max_repeats, seed=seed)
        self.choice = MaskChoice.of(classes, counts, indices, target)
        return indices

    def _class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """Labelled pixels of every class in every mask (N, K), as the pipeline leaves the masks."""
        counts = np.zeros((self._ends[-1], num_classes), np.int64)
        for index in progress_bar(range(len(counts)), unit='mask', title='counting classes'):
            reader, inner = self._find(index)
            sample = reader.pipeline(reader.info(inner))
            packed = sample.get('data_samples')
            mask = sample['gt_seg_map'] if packed is None else packed.gt_sem_seg.data[0].numpy()
            counts[index] = np.bincount(mask[mask != IGNORE_INDEX], minlength=num_classes)[:num_classes]
        return counts

    def _repeat(self, file: str) -> NDArray[np.intp]:
        """Indices of the masks that a file names, each repeated by its number of images."""
        numbers = _read_numbers(file)
        names = [sample_id(reader.info(index)) for reader in self._readers for index in range(len(reader))]
        unknown = sorted(numbers.keys() - set(names))
        if unknown:
            raise ValueError(f'{file} names {len(unknown)} masks that the data set does not have, such as '
                             f'{unknown[0]!r}; give the data set of the masks that the pool was generated for.')
        return np.repeat(np.arange(len(names)), [numbers.get(name, 0) for name in names])


def _parts(source: Dataset) -> list[Dataset]:
    """The data sets that a ConcatDataset joins, or the data set itself."""
    return [part for joined in source.datasets for part in _parts(joined)] if isinstance(source, ConcatDataset) else [
        source]


def _read_numbers(file: str) -> dict[str, int]:
    if not Path(file).is_file():
        raise FileNotFoundError(f'`images_per_mask` {file} does not exist; tools/select_samples.py writes it into a '
                                'pool.')
    try:
        numbers = json.loads(Path(file).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is not valid JSON: {error}') from None
    if not isinstance(numbers, dict) or not all(type(count) is int and count >= 0 for count in numbers.values()):
        raise ValueError(f'{file} must hold an object of mask ids and numbers of images, such as {{"masks/a": 2}}.')
    if not any(numbers.values()):
        raise ValueError(f'{file} asks for no image at all.')
    return numbers


def _check_options(target: Mapping[str, float] | None, count: int | None, images_per_mask: str | None,
                   max_repeats: int, report_file: str | None) -> None:
    if (target is None) == (images_per_mask is None):
        raise ValueError('ChosenMasks: exactly one of `target` and `images_per_mask` must be given, got '
                         f'{"neither" if target is None else "both"}.')
    if target is not None and count is None:
        raise ValueError('ChosenMasks: `target` needs `count`, the number of masks to choose.')
    if target is None and (count is not None or max_repeats != 1 or report_file is not None):
        raise ValueError('ChosenMasks: `count`, `max_repeats` and `report_file` go with `target`; the file '
                         '`images_per_mask` says how often each mask is taken.')
    wrong = {} if target is None else {name: share for name, share in target.items() if not 0 <= share <= 1}
    if wrong or (target is not None and not target):
        raise ValueError(f'`target` must give at least one class a share in [0, 1], got {dict(target or {})}.')
