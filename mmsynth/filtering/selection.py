"""Which synthetic samples to train on and how often, and which masks to generate more images for.

Legend: H W pixels of a mask, M masks.
"""
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsynth.filtering.identity import label_hash
from mmsynth.pool import Pool, PoolRecord
from mmsynth.pool.index import FILTERED, stem_of
from mmsynth.pool.recovery import SELECTION_FILES
from mmsynth.utils.files import atomic_write
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.utils.progress import progress_bar

SELECTED_FILE, IMAGES_PER_MASK_FILE = SELECTION_FILES
_SHOWN = 1e-3  # pixels: sums of 8-bit weights are 0 or at least 1 / 255
_REPEAT = re.compile(r'~\d+$')


def keep_sample(filtered_label: NDArray[np.integer], weak_classes: Mapping[int, str],
                min_valid: float) -> tuple[bool, str]:
    """The released rule: keep a sample that still shows a weak class; else one with enough valid pixels.

    Args:
        filtered_label: Class map (H, W) after the pixel filter; 255 where not trusted, and where never labelled.
        weak_classes: Index → name of the classes that keep a sample by a single pixel; may be empty.
        min_valid: A sample without them is kept if its valid share is *above* this, in [0, 1].

    Returns:
        Whether to keep the sample, and why in a few words.

    Raises:
        ValueError: If ``min_valid`` is out of range, or the label is empty.
    """
    _check_share(min_valid)
    if not filtered_label.size:
        raise ValueError(f'`filtered_label` must not be empty, got {filtered_label.shape}')
    valid = float((filtered_label != IGNORE_INDEX).mean())
    shown = set(np.unique(filtered_label).tolist())
    return _decide([name for index, name in weak_classes.items() if index in shown], valid, min_valid)


@dataclass(frozen=True)
class Selection:
    """What to train on.

    Attributes:
        repeats: File stem of every sample → how often training lists it, 0 for samples left out; in the pool's order.
        reasons: File stem of every sample → why, in a few words.
        images_per_mask: Id of every mask → how many images to generate for it in a further run.
    """

    repeats: dict[str, int]
    reasons: dict[str, str]
    images_per_mask: dict[str, int]

    def lines(self) -> list[str]:
        """The stems to train on, as often as each is repeated."""
        return [stem for stem, count in self.repeats.items() for _ in range(count)]

    def write(self, folder: str | Path) -> None:
        """Write ``selected.txt`` and ``images_per_mask.json`` into a pool.

        Raises:
            ValueError: If no sample is selected; nothing is written then.
        """
        if not self.lines():
            raise ValueError(f'no sample of {folder} is selected; lower `min_valid`, or name weak classes.')
        numbers = json.dumps(self.images_per_mask, indent=1, ensure_ascii=False)
        write_selected(Path(folder), self.lines())
        atomic_write(Path(folder) / IMAGES_PER_MASK_FILE, (numbers + '\n').encode())


def write_selected(root: Path, lines: Iterable[str]) -> None:
    """Write ``selected.txt`` into a pool: the stems to train on, as often as each is drawn."""
    atomic_write(root / SELECTED_FILE, ''.join(f'{line}\n' for line in lines).encode())


class RareClassSelector:
    """Select samples of a filtered pool to train on: those with weak classes or enough valid pixels; hard ones more.

    A sample is kept by the rule of :func:`keep_sample`, from what the filter wrote into the manifest. A kept sample is
    listed once, or, with ``max_repeats`` R over 1, as often as its mask is hard (after FreeMask, which generates more
    images for hard masks)::

        repeats(mask) = 1 + floor(R * (number of masks with less hardness) / M)

    The hardness of a mask is the mean of its samples' ``hardness``: the mean over classes of a class's loss, divided by
    the class's mean loss on real data. So the easiest 1 / R of the masks stay at 1, the hardest come to R, and equal
    masks are repeated alike. The same number is how many images to generate for the mask in a further run.

    Args:
        weak_classes: Names of classes; a sample that still shows one of them is kept.
        min_valid: Keep others if more than this share of their pixels is valid, that is within the filter's margin
            (also of a soft filter), in [0, 1]. None keeps those that the filter kept.
        max_repeats: R, at least 1.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(self, weak_classes: Sequence[str] = (), *, min_valid: float | None = None,
                 max_repeats: int = 1) -> None:
        if isinstance(weak_classes, str):
            raise ValueError(f'`weak_classes` must be a sequence of names, got the text {weak_classes!r}.')
        if min_valid is not None:
            _check_share(min_valid)
        if max_repeats < 1:
            raise ValueError(f'`max_repeats` must be at least 1, got {max_repeats}.')
        self.weak_classes = tuple(weak_classes)
        self.min_valid = min_valid
        self.max_repeats = max_repeats

    def select(self, pool: Pool) -> Selection:
        """Select from a pool; its files are read only to see that they are those that were filtered.

        Raises:
            ValueError: If a weak class is unknown; if samples are not filtered, were filtered by different filters, or
                have other labels since.
        """
        unknown = [name for name in self.weak_classes if name not in pool.classes]
        if unknown:
            raise ValueError(f'`weak_classes` has {", ".join(map(repr, unknown))}, which {pool.root} does not know; '
                             f'its classes are {", ".join(pool.classes)}.')
        records = pool.records
        check_filtered(pool)
        repeats = self._mask_repeats(records)
        found = {stem_of(record): (repeats[mask_id(record)], *self._keep(entry_of(record))) for record in records}
        return Selection(
            repeats={stem: count * keep for stem, (count, keep, _) in found.items()},
            reasons={stem: reason for stem, (*_, reason) in found.items()},
            images_per_mask=repeats)

    def _keep(self, entry: Mapping[str, Any]) -> tuple[bool, str]:
        left = {name: count - entry['removed'].get(name, 0) for name, count in entry['pixels'].items()}
        shown = [name for name in self.weak_classes if left.get(name, 0) > _SHOWN]
        if self.min_valid is None and not shown:
            return entry['keep'], entry['reason']
        return _decide(shown, entry['valid'], self.min_valid or 0)

    def _mask_repeats(self, records: Sequence[PoolRecord]) -> dict[str, int]:
        """Mask id → how often its kept samples are repeated."""
        found: dict[str, list[float]] = {}
        for record in records:
            found.setdefault(mask_id(record), []).append(entry_of(record)['hardness'] or 0.0)
        hardness = np.array([np.mean(values) for values in found.values()])
        easier = np.searchsorted(np.sort(hardness), hardness)
        return {mask: 1 + self.max_repeats * int(rank) // len(found) for mask, rank in zip(found, easier)}


def mask_id(record: PoolRecord) -> str:
    """The id of the mask that a sample was generated for, as the data set of the masks has it.

    That is the sample's own id without the number of the repeat (``NAME~2``), and for a mask that ``ChosenMasks`` gave
    the id that it has there.
    """
    origin = record.mask_origin
    if origin is not None and origin.get('source') == 'chosen':
        return origin['mask']
    if _REPEAT.search(Path(record.source_mask).stem):  # the mask itself is called so
        return record.id
    return _REPEAT.sub('', record.id)


def entry_of(record: PoolRecord) -> Mapping[str, Any]:
    """What the filter recorded of a sample, which has gone through one."""
    assert record.filter is not None
    return record.filter


def check_filtered(pool: Pool) -> None:
    """Raise ValueError unless all samples of a pool were filtered by one filter, with the labels that they have now."""
    records = pool.records
    unfiltered = records[(records.rows['flags'] & FILTERED) == 0]
    problems = _first_few([record.id for record in unfiltered], 'not filtered')
    if not problems and len({entry_of(record)['filter_sha256'] for record in records}) > 1:
        problems = 'samples were filtered by different filters'
    if not problems:
        problems = _first_few([record.id for record in progress_bar(records, unit='img', title='check labels')
                               if label_hash(pool.load_mask(record)) != entry_of(record)['labels_sha256']],
                              'with other labels than those that were filtered')
    if problems or not records:
        raise ValueError(f'cannot select from {pool.root}: {problems or "it is empty"}. Run tools/filter_pool.py on it'
                         ' (with --overwrite to replace results).')


def _first_few(ids: Collection[str], what: str) -> str:
    return f'{len(ids)} samples are {what}, such as {next(iter(ids))!r}' if ids else ''


def _decide(shown: Sequence[str], valid: float, min_valid: float) -> tuple[bool, str]:
    """Keep or not, by the weak classes that a sample shows and its valid share."""
    if shown:
        return True, f'weak class {shown[0]}'
    if valid > min_valid:
        return True, f'{_percent(valid)} valid'
    return False, f'{_percent(valid)} valid, {"below" if valid < min_valid else "not above"} {_percent(min_valid)}'


def _percent(share: float) -> str:
    return f'{100 * share:.1f}'.removesuffix('.0') + ' %'


def _check_share(min_valid: float) -> None:
    if not 0 <= min_valid <= 1:
        raise ValueError(f'`min_valid` must be in [0, 1], got {min_valid}.')
