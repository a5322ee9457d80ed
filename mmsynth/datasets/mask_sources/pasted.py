"""PastedMasks: rare objects of other masks pasted where they may stand.

An object is a connected component of a class: finding objects, cutting them out, where they fit; then the mask source.

Legend: H W pixels of the mask, N objects, h w pixels of an object's box.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mmsynth.datasets.mask_sources.base import Mask, MaskReader, VariantSource, class_ids, sample_id
from mmsynth.registry import DATASETS
from mmsynth.utils.progress import progress_bar
from mmsynth.utils.seeds import derive_seed

Shape = NDArray[np.bool_]
_ATTEMPTS = 10  # objects tried for one place in a mask before it is left empty


class MaskObject(NamedTuple):
    """A connected component of a class; pixels that touch at a corner are connected.

    Attributes:
        class_id: The class.
        number: Among the components of that class in its mask, from 0, by their first pixels in reading order.
        first: Row and column of that pixel.
        corner: Row and column of the box's upper left pixel.
        size: Height and width of the box.
        pixels: Of the component.
    """

    class_id: int
    number: int
    first: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    pixels: int


def find_objects(mask: Mask, class_id: int, min_pixels: int = 1, max_pixels: int | None = None) -> list[MaskObject]:
    """The components of a class with so many pixels, in the order of their first pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(_binary(mask, class_id), connectivity=8)
    places = np.flatnonzero(labels)
    found, first = np.unique(labels.ravel()[places], return_index=True)  # cv2's own order depends on its threads
    order = np.argsort(first)
    objects = []
    for number, (label, place) in enumerate(zip(found[order].tolist(), places[first[order]].tolist())):
        left, top, width, height, pixels = stats[label].tolist()
        if min_pixels <= pixels <= (max_pixels or pixels):
            first_pixel = divmod(place, mask.shape[1])
            objects.append(MaskObject(class_id, number, first_pixel, (top, left), (height, width), pixels))
    return objects


def cut_out(mask: Mask, thing: MaskObject) -> Shape:
    """The pixels of an object inside its box (h, w), bool."""
    (top, left), (height, width) = thing.corner, thing.size
    _, labels = cv2.connectedComponents(_binary(mask, thing.class_id), connectivity=8)
    return labels[top:top + height, left:left + width] == labels[thing.first]


def places_for(shape: Shape, free: Shape, min_visible: float = 1.0) -> NDArray[np.int64]:
    """Where an object fits.

    Args:
        shape: The object's pixels in its box (h, w).
        free: Pixels of the mask that may be covered (H, W).
        min_visible: Share of the object's pixels that must come to lie on free ones, in (0, 1].

    Returns:
        Rows and columns (N, 2) for the upper left pixel of the box, which lies inside the mask, in reading order.
    """
    if shape.shape[0] > free.shape[0] or shape.shape[1] > free.shape[1]:
        return np.empty((0, 2), np.int64)
    on_free = cv2.matchTemplate(free.astype(np.float32), shape.astype(np.float32), cv2.TM_CCORR)  # counts, nearly whole
    needed = max(1, math.ceil(min_visible * shape.sum() - 1e-9))
    return np.argwhere(on_free > needed - 0.5)


def _binary(mask: Mask, class_id: int) -> Mask:
    return (mask == class_id).astype(np.uint8)


@dataclass(frozen=True)
class Donation:
    """An object found in a donor.

    Attributes:
        donor: The donor's sample id.
        source: The donor's mask file, to which no object of it goes back.
        thing: The object.
        shape: Its pixels in its box (h, w), bool.
    """

    donor: str
    source: str
    thing: MaskObject
    shape: Shape


class ObjectBank:
    """The objects of all donors. Only where they are is kept; a donor is read again when one of its objects is drawn.

    Args:
        reader: Reads the donors.
        classes: Ids of the classes whose objects are wanted.
        min_pixels: Of an object.
        max_pixels: Of an object; None for any.

    Raises:
        ValueError: If no donor has such an object.
    """

    def __init__(self, reader: MaskReader, classes: Sequence[int], min_pixels: int, max_pixels: int | None) -> None:
        self.reader = reader
        self.class_names: Sequence[str] = reader.dataset.metainfo['classes']
        found: dict[int, list[tuple[int, ...]]] = {class_id: [] for class_id in classes}
        for index in progress_bar(range(len(reader)), unit='mask', title='objects to paste'):
            mask = reader.mask(reader.info(index))
            for class_id, rows in found.items():
                rows += [(index, thing.number, *thing.first, *thing.corner, *thing.size, thing.pixels)
                         for thing in find_objects(mask, class_id, min_pixels, max_pixels)]
        self._rows = {class_id: np.array(rows, np.int32) for class_id, rows in found.items() if rows}
        if not self._rows:
            names = ', '.join(self.class_names[class_id] for class_id in classes)
            limits = f'at least {min_pixels}' + ('' if max_pixels is None else f' and at most {max_pixels}')
            raise ValueError(f'none of the {len(reader)} donors has an object of {names} with '
                             f'{limits} pixels; name other `classes`, widen `min_pixels` and `max_pixels`, or give '
                             'other `donors`.')

    def count(self) -> dict[int, int]:
        """Number of objects per class id; classes without one are left out."""
        return {class_id: len(rows) for class_id, rows in self._rows.items()}

    def draw(self, rng: np.random.Generator) -> Donation:
        """An object: every class alike, and every object of a class."""
        class_id = list(self._rows)[rng.integers(len(self._rows))]
        index, number, *places, pixels = self._rows[class_id][rng.integers(len(self._rows[class_id]))].tolist()
        first, corner, size = zip(places[::2], places[1::2])
        thing = MaskObject(class_id, number, first, corner, size, pixels)
        info = self.reader.info(index)
        return Donation(sample_id(info), str(info['seg_map_path']), thing, cut_out(self.reader.mask(info), thing))


@dataclass(frozen=True)
class PasteStep:
    """Paste objects of a bank.

    Attributes:
        bank: The objects.
        seed: Of all that is drawn here.
        own: The mask's file, whose own objects are not pasted.
        onto: Class ids that may be covered.
        num_objects: Lowest and highest number of objects.
        min_visible: Share of an object's pixels that must come to lie on these classes, in (0, 1].
        margin: Pixels between an object and what it may not cover, other objects included.
        turn: Whether objects are flipped and turned by quarters.
    """

    bank: ObjectBank
    seed: int
    own: str
    onto: tuple[int, ...]
    num_objects: tuple[int, int]
    min_visible: float
    margin: int
    turn: bool

    def __call__(self, mask: Mask) -> tuple[Mask, dict[str, Any]]:
        rng = np.random.default_rng(self.seed)
        mask, free = mask.copy(), np.isin(mask, self.onto)
        wanted = int(rng.integers(self.num_objects[0], self.num_objects[1] + 1))
        pasted = [self._paste_one(mask, free, rng) for _ in range(wanted)]
        return mask, dict(source='paste', objects=[entry for entry in pasted if entry is not None])

    def _paste_one(self, mask: Mask, free: Shape, rng: np.random.Generator) -> dict[str, Any] | None:
        """Paste one object into the mask and take its pixels from the free ones; None where nothing tried fits."""
        allowed = free
        if self.margin:  # with none but free pixels, and the mask's border, so many pixels around
            kernel = np.ones((2 * self.margin + 1, 2 * self.margin + 1), np.uint8)
            allowed = cv2.erode(free.astype(np.uint8), kernel) > 0
        for _ in range(_ATTEMPTS):
            donation = self.bank.draw(rng)
            flip, turns = (bool(rng.integers(2)), int(rng.integers(4))) if self.turn else (False, 0)
            shape = np.rot90(donation.shape[:, ::-1] if flip else donation.shape, turns)
            places = places_for(shape, allowed, self.min_visible)
            if donation.source == self.own or not len(places):
                continue
            top, left = places[rng.integers(len(places))].tolist()
            window = np.s_[top:top + shape.shape[0], left:left + shape.shape[1]]
            pasted = shape & allowed[window]
            mask[window][pasted] = donation.thing.class_id
            free[window][pasted] = False
            return {
                'class': self.bank.class_names[donation.thing.class_id], 'donor': donation.donor,
                'component': donation.thing.number, 'flip': flip, 'quarter_turns': turns, 'position': [top, left],
                'pixels': int(pasted.sum())}
        return None


@DATASETS.register_module()
class PastedMasks(VariantSource):
    """The masks of a data set with objects of rare classes added, taken from other masks.

    An object is a connected component of a class. A place for it is drawn from all where it lies on classes that it may
    cover; what was pasted is not covered again, and unlabelled pixels never are. Where nothing tried fits, fewer
    objects are pasted than asked for, down to none; ``mask_origin`` lists what was. The ids are those of the masks with
    '+paste', '+paste2' …

    Args:
        dataset: The data set with the masks, or its config.
        classes: Names of the classes whose objects are pasted, each as often.
        onto: Names of the classes that may be covered.
        num_objects: Objects per mask: a number, or the lowest and the highest one.
        min_pixels: Smaller objects are not used.
        max_pixels: Larger objects are not used; None sets no limit.
        min_visible: Share of an object's pixels that must come to lie on ``onto``, in (0, 1]; the rest is left out.
            Less than 1 lets roads and rivers in, which seldom fit in full.
        margin: Pixels kept between an object and what it may not cover, other objects included.
        turn: Flip objects and turn them by quarters.
        donors: Data set whose objects are taken, or its config; by default ``dataset`` itself. No mask gets an
            object of its own.
        num_variants: Variants of each mask.
        keep_original: Give the masks as they are, too, before all variants.
        seed: Another seed, other variants.

    Raises:
        ValueError: If a class is unknown, ``classes`` and ``onto`` overlap, a number is out of range, donors have other
            classes, or none has an object to paste.
    """

    def __init__(self,
                 dataset: Dataset | Mapping[str, Any],
                 classes: Sequence[str],
                 onto: Sequence[str],
                 num_objects: int | tuple[int, int] = (1, 3),
                 min_pixels: int = 1,
                 max_pixels: int | None = None,
                 min_visible: float = 1.0,
                 margin: int = 0,
                 turn: bool = True,
                 donors: Dataset | Mapping[str, Any] | None = None,
                 num_variants: int = 1,
                 keep_original: bool = False,
                 seed: int = 0) -> None:
        counts: Any = (num_objects, num_objects) if isinstance(num_objects, int) else tuple(num_objects)
        _check_numbers(counts, min_pixels, max_pixels, min_visible, margin)
        super().__init__(dataset, num_variants, keep_original, seed)
        known: Any = self.metainfo.get('classes')
        wanted, self.onto = class_ids(classes, known, 'classes'), tuple(class_ids(onto, known, 'onto'))
        both = [known[class_id] for class_id in wanted if class_id in self.onto]
        if both:
            raise ValueError(f'`classes` and `onto` both name {", ".join(both)}; an object must cover another class.')
        self.num_objects = counts
        self.min_visible = min_visible
        self.margin = margin
        self.turn = turn
        reader = self.reader if donors is None else MaskReader(donors)
        if tuple(reader.dataset.metainfo.get('classes') or ()) != tuple(known):
            raise ValueError(f'`donors` has the classes {reader.dataset.metainfo.get("classes")}, the data set {known};'
                             ' they must be the same.')
        self.bank = ObjectBank(reader, wanted, min_pixels, max_pixels)

    def variant(self, info: dict[str, Any], number: int) -> tuple[str, PasteStep]:
        seed = derive_seed(self.seed, 'paste', sample_id(info), number)
        step = PasteStep(self.bank, seed, str(info['seg_map_path']), self.onto, self.num_objects, self.min_visible,
                         self.margin, self.turn)
        return 'paste' if number == 0 else f'paste{number + 1}', step


def _check_numbers(counts: tuple[int, ...], min_pixels: int, max_pixels: int | None, min_visible: float,
                   margin: int) -> None:
    problems = []
    if len(counts) != 2 or not 0 <= counts[0] <= counts[1] or counts[1] < 1:
        problems.append(f'`num_objects` must be a number from 1 or (lowest, highest), got {counts}')
    if min_pixels < 1 or (max_pixels is not None and max_pixels < min_pixels):
        problems.append('`min_pixels` must be at least 1 and at most `max_pixels`, got '
                        f'{min_pixels} and {max_pixels}')
    if not 0 < min_visible <= 1:
        problems.append(f'`min_visible` must be in (0, 1], got {min_visible}')
    if margin < 0:
        problems.append(f'`margin` must be at least 0 pixels, got {margin}')
    if problems:
        raise ValueError('; '.join(problems) + '.')
