"""A pool as training reads it, while somebody else may be writing it.

Samples have numbers: their positions in the order in which they were published (a pool with ``rounds.jsonl``), or in
the manifest (one without). A number means the same sample for ever.
"""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmsynth.pool.header import HEADER_FILE, PoolHeader
from mmsynth.pool.index import LineIndex, Signature, signature_at
from mmsynth.pool.manifest import MANIFEST_FILE, PoolRecord
from mmsynth.pool.records import Records, read_list, read_records
from mmsynth.pool.rounds import ROUNDS_FILE, Round, read_rounds
from mmsynth.utils.images import opened_image
from mmsynth.utils.labels import check_labels, read_label

LOOK_EVERY = 100  # iterations: every change costs the walk through the pool a pass over all samples


class Change(NamedTuple):
    """What enters and leaves a pool with one round.

    Attributes:
        iteration: The first training iteration that it counts for.
        joined: Numbers of the samples that are drawn from then on.
        retired: Numbers of those that are drawn no longer.
    """

    iteration: int
    joined: tuple[int, ...]
    retired: tuple[int, ...] = ()


class PoolReader:
    """The samples of a pool by number. Opens nothing before it is asked, keeps no file open, and can be pickled.

    A folder that does not exist is an empty pool, since the one who fills it may come later.

    A pool with ``rounds.jsonl`` says itself from which iteration on a sample counts, so every reader sees the same at
    the same iteration. One without, which ``tools/synthesize.py`` or a filter may still be writing, cannot: readers
    look at it when they start and then every ``LOOK_EVERY`` (100) iterations, and what they find counts from the
    iteration at which they look. So a training on a pool that does not change is repeatable and resumes exactly, and
    all its ranks draw parts of one global batch. While a pool without rounds is written, neither holds: ranks that look
    at different moments may draw a sample twice or leave one out in that epoch (batches keep their size and share), and
    a resumed training takes all that is there as if it had been there from the start.

    With ``ann_file`` it reads a finished pool once, as it is: a number is then a place in the list.

    Args:
        root: The pool's folder.
        ann_file: A list of file names in the pool, such as ``selected.txt``, instead of all; a sample that stands there
            twice has two numbers.

    Attributes:
        changes: What happened to the pool, as far as known.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it names nothing or what the pool does not hold, or the pool grows by rounds.
    """

    def __init__(self, root: str | Path, ann_file: str | None = None) -> None:
        self.root = Path(root)
        self.changes: list[Change] = []
        self._listed: Records | None = None
        if ann_file is not None:
            if (self.root / ROUNDS_FILE).is_file():
                raise ValueError(f'`ann_file` {ann_file} is for a finished pool, and {root} grows by rounds while a '
                                 'segmentor trains; leave it out.')
            records = read_records(root)
            self._listed = records[read_list(root, ann_file, records)]
            self.changes = [Change(0, tuple(range(len(self._listed))))]
        self._ids: list[str] | None = None  # of the rounds, in their order
        self._index: LineIndex | None = None
        self._kept = np.zeros(0, bool)  # of the index when ``changes`` were last brought up to date
        self._looked: int | None = None  # iteration of the last look at a manifest without rounds
        self._seen: dict[str, Signature | None] = {}

    def header(self) -> PoolHeader | None:
        """What the pool's samples have in common; None where there is no pool yet.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.root / HEADER_FILE
        return PoolHeader.read(path) if path.is_file() else None

    def update(self, iteration: int | None = None) -> bool:
        """Look whether samples were added since; return whether there is anything new.

        Args:
            iteration: The training iteration that is about to be drawn; None looks at once, whenever the last look was.

        Raises:
            ValueError: If the pool's lists are damaged.
        """
        if self._listed is not None:
            return False
        if self._is_new(ROUNDS_FILE):
            self._take_rounds(read_rounds(self.root))
            return True
        if self._seen[ROUNDS_FILE] is not None:
            return False
        if (self._index is not None and iteration is not None and self._looked is not None
                and iteration // LOOK_EVERY == self._looked // LOOK_EVERY):
            return False
        is_first, self._looked = self._looked is None, max(iteration or 0, self._looked or 0)
        return self._follow_manifest() and self._take_manifest(0 if is_first else self._looked)

    def live(self, iteration: int | None = None) -> list[int]:
        """Numbers of the samples that are live at a training iteration; None for all that is known."""
        live: dict[int, None] = {}
        for change in self.changes:
            if iteration is None or change.iteration <= iteration:
                live.update(dict.fromkeys(change.joined))
                for number in change.retired:
                    live.pop(number, None)
        return list(live)

    def record(self, number: int) -> PoolRecord | None:
        """A sample's record; the pool's lists are read again if they have changed. None if it is not there.

        Raises:
            ValueError: If the pool's lists are damaged.
        """
        if self._listed is not None:
            return self._listed[number] if 0 <= number < len(self._listed) else None
        if self._ids is None and self._index is None or self._ids is not None and number >= len(self._ids):
            self.update()
        if self._ids is None:
            if self._index is None or not self._follow_manifest() or not 0 <= number < len(self._index):
                return None
            return self._index.record(number)
        if not 0 <= number < len(self._ids):
            return None
        try:
            if self._index is None:
                self._index = LineIndex(self.root / MANIFEST_FILE)
            self._index.refresh()
        except FileNotFoundError:
            return None
        line = self._index.find(self._ids[number])
        return None if line is None else self._index.record(line)

    def _take_rounds(self, rounds: Sequence[Round]) -> None:
        self._ids = [id for round in rounds for id in round.ids]
        numbers = {id: number for number, id in enumerate(self._ids)}
        self.changes = [Change(round.usable_from, tuple(numbers[id] for id in round.ids),
                               tuple(numbers[id] for id in round.retired)) for round in rounds]

    def _follow_manifest(self) -> bool:
        """Bring the index up to date; return whether there is a manifest.

        Raises:
            ValueError: If it is another one than before: samples that were there are not, or not in their places.
        """
        index = self._index
        try:
            if index is None:
                self._index = LineIndex(self.root / MANIFEST_FILE)
                return True
            count, last_line = len(index), index.last_line
            if not index.refresh() or not count:
                return True
        except FileNotFoundError:
            return False
        if len(index) < count or index.record(count - 1).id != json.loads(last_line)['id']:
            raise ValueError(f'{self.root}: samples were removed from the pool while it was read ({count} were there, '
                             f'{len(index)} are). Start the training again.')
        return True

    def _take_manifest(self, iteration: int) -> bool:
        """Let all samples join but those that a filter dropped, and those retire that it has dropped since."""
        assert self._index is not None
        before = np.pad(self._kept, (0, len(self._index) - len(self._kept)))
        self._kept = self._index.kept
        joined, retired = (np.flatnonzero(found) for found in (self._kept & ~before, before & ~self._kept))
        if len(joined) or len(retired):
            self.changes.append(Change(iteration, tuple(joined.tolist()), tuple(retired.tolist())))
        return bool(len(joined) or len(retired))

    def _is_new(self, name: str) -> bool:
        """Whether a file is there and is not as it was when last asked."""
        before, self._seen[name] = self._seen.get(name), signature_at(self.root / name)
        return self._seen[name] not in (None, before)


class FileCheck:
    """Check whether the files of samples are whole. What was whole is read again only after it was changed.

    mmseg's loaders take what a truncated file holds, or stop the training; so files are looked at before.

    Args:
        root: The pool's folder.
        num_classes: Of the labels.
    """

    def __init__(self, root: Path, num_classes: int) -> None:
        self._root = root
        self._num_classes = num_classes
        self._whole: set[int] = set()  # a hash per sample: workers come to hold one for every sample of the pool

    def fault(self, record: PoolRecord) -> str | None:
        """Return what is wrong with a sample's files, or None."""
        image, *labels = (self._root / file for file in used_files(record))
        state = hash(tuple(map(signature_at, (image, *labels))))
        if state in self._whole:
            return None
        try:
            with opened_image(image) as opened:
                opened.load()
                size = opened.height, opened.width
        except FileNotFoundError:
            return f'image {image} does not exist'
        except ValueError as error:
            return str(error)
        try:
            maps = [read_label(str(path)) for path in labels]
            check_labels(maps[0], self._num_classes, labels[0])
        except (OSError, ValueError) as error:
            return str(error)
        for path, pixels in zip(labels, maps):
            if pixels.shape != size:
                return (f'{image} is {size[0]} x {size[1]} (height x width), {path} is {pixels.shape[0]} x '
                        f'{pixels.shape[1]}')
        self._whole.add(state)
        return None


def used_files(record: PoolRecord) -> tuple[str, ...]:
    """The files of a sample that training reads: image, label, and the weights of its pixels if a filter gave some.

    The label is that of the filter where one ran.
    """
    found = record.filter or {}
    return tuple(filter(None, (record.image, found.get('label') or record.mask, found.get('weight'))))
