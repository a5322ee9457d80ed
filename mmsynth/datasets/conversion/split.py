"""Which images train, validate and test: by lists, or by place, so that no place is in two parts."""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmsynth.utils import derive_seed
from mmsynth.utils.messages import first_few

PARTS = ('train', 'val', 'test')


@dataclass(frozen=True)
class SplitRule:
    """How images are divided. A *place* is what neighbouring images have in common; by default each image is one.

    Attributes:
        places: Regular expression, searched in the names of images; its first group names the place.
        val: Places to validate on.
        test: Places to test on; the others train.
        val_share: Where no places are named: this share of the places, chosen by ``seed``, in [0, 1).
        test_share: The same for the test part.
        lists: Part → text file with one name of an image per line, with or without suffix. What no list names trains,
            unless there is a list for 'train'.
        seed: Names the choice.
    """

    places: str = '^(.*)$'
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    val_share: float = 0.0
    test_share: float = 0.0
    lists: Mapping[str, Path] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise ValueError('`val_share` and `test_share` must be at least 0 and less than 1 together, got '
                             f'{self.val_share} and {self.test_share}.')
        ways = {'lists': bool(self.lists), 'places named by `val` and `test`': bool(self.val or self.test),
                'shares': bool(self.val_share or self.test_share)}
        given = [name for name, used in ways.items() if used]
        if len(given) > 1:
            raise ValueError(f'images are divided by {" and by ".join(given)}; choose one of the two.')
        try:
            groups = re.compile(self.places).groups
        except re.error as error:
            raise ValueError(f'`places` {self.places!r} is no regular expression: {error}.') from error
        if groups < 1:
            raise ValueError(f"`places` {self.places!r} has no group; put what names the place in brackets, as in "
                             "'^([^_]+)_'.")


def place_of(name: str, places: str) -> str:
    """The place of an image.

    Raises:
        ValueError: If the expression finds none in its name.
    """
    match = re.search(places, name)
    if match is None or not match.group(1):
        raise ValueError(f'`places` {places!r} finds no place in the name {name!r}; correct it, or rename the image.')
    return match.group(1)


def divide(names: Sequence[str], rule: SplitRule) -> dict[str, str]:
    """The part of every image.

    Args:
        names: Names of the images.
        rule: How they are divided.

    Returns:
        Name → 'train', 'val' or 'test'; images that a list for 'train' leaves out are missing.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If a place or listed name does not exist, a name is listed twice, or nothing is left to train on.
    """
    if rule.lists:
        parts = _by_lists(names, rule.lists)
    else:
        parts = _by_places({name: place_of(name, rule.places) for name in names}, rule)
    if names and 'train' not in parts.values():
        raise ValueError('no image is left to train on; take fewer places or names for validation and test.')
    return parts


def _by_places(place: Mapping[str, str], rule: SplitRule) -> dict[str, str]:
    known = sorted(set(place.values()))
    missing = sorted({*rule.val, *rule.test} - set(known))
    if missing:
        raise ValueError(f'there is no place {first_few(missing)}; places: {first_few(known, count=12)}.')
    both = sorted(set(rule.val) & set(rule.test))
    if both:
        raise ValueError(f'{first_few(both)} cannot be in `val` and in `test`; name each place once.')
    val, test = list(rule.val), list(rule.test)
    if rule.val_share or rule.test_share:
        order = np.random.default_rng(derive_seed(rule.seed, 'places')).permutation(known).tolist()
        num_val, num_test = (max(1, round(share * len(known))) if share else 0
                             for share in (rule.val_share, rule.test_share))
        val, test = order[:num_val], order[num_val:num_val + num_test]
    part_of_place = dict.fromkeys(known, 'train') | dict.fromkeys(val, 'val') | dict.fromkeys(test, 'test')
    return {name: part_of_place[where] for name, where in place.items()}


def _by_lists(names: Sequence[str], lists: Mapping[str, Path]) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part, path in lists.items():
        if not Path(path).is_file():
            raise FileNotFoundError(f'`{part}_list`: there is no file {path}.')
        listed = [line.strip() for line in Path(path).read_text(encoding='utf-8-sig').splitlines() if line.strip()]
        listed = [name if name in names else str(Path(name).with_suffix('')) for name in listed]
        unknown = sorted(set(listed) - set(names))
        if unknown:
            raise ValueError(f'`{part}_list` {path} names {len(unknown)} image(s) that are not there: '
                             f'{first_few(unknown)}; images: {first_few(sorted(names), count=3)}.')
        twice = sorted(set(listed) & parts.keys())
        if twice:
            raise ValueError(f'{first_few(twice)} is in `{part}_list` {path} and in `{parts[twice[0]]}_list`; name '
                             'each image in one list.')
        parts |= dict.fromkeys(listed, part)
    return parts if 'train' in lists else dict.fromkeys(names, 'train') | parts


def check_places(place_and_part: Sequence[tuple[str, str]]) -> None:
    """Check that no place is in two parts.

    Raises:
        ValueError: If one is; the message names the places and the parts.
    """
    found: dict[str, set[str]] = {}
    for place, part in place_and_part:
        found.setdefault(place, set()).add(part)
    shared = [f'{place} ({" and ".join(sorted(parts))})' for place, parts in sorted(found.items()) if len(parts) > 1]
    if shared:
        raise ValueError(f'two parts share {len(shared)} place(s), so that what is validated on was trained on: '
                         f'{first_few(shared)}. Put all images of a place into one part, or correct `places`, which '
                         'says what a place is.')
