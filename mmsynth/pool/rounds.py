"""The rounds of a pool that grows while a segmentor trains: which samples are drawn from which iteration on.

``rounds.jsonl`` beside the manifest, one JSON object per line, one line per round::

    {"round": 0, "usable_from": 12, "ids": ["00000000", "00000001"], "retired": [], "dropped": 2}

A round's line is written after its samples are stored, so it never names a sample that is not there. Samples that are
retired are drawn no longer; their files go later, when no checkpoint needs them any more.
"""
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path

from mmsynth.pool.manifest import complete_length, strict_json
from mmsynth.utils.files import append_lines, atomic_write

ROUNDS_FILE = 'rounds.jsonl'
_KEYS = ('round', 'usable_from', 'ids', 'retired', 'dropped')


@dataclass(frozen=True)
class Round:
    """What changed in the pool with one round.

    Args:
        round: Its number, from 0; rounds that were lost leave gaps.
        usable_from: The first training iteration, counted from 0, that draws by it.
        ids: Samples that are drawn from then on, in their order.
        retired: Samples that are drawn no longer from then on.
        dropped: Samples that were asked for and did not come to be, or that the filter dropped.

    Raises:
        ValueError: If a field breaks its rule.
    """

    round: int
    usable_from: int
    ids: tuple[str, ...]
    retired: tuple[str, ...] = ()
    dropped: int = 0

    def __post_init__(self) -> None:
        for name in ('round', 'usable_from', 'dropped'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
                raise ValueError(f'`{name}` must be an integer that is not negative, got {value!r:.80}')
            object.__setattr__(self, name, int(value))
        for name in ('ids', 'retired'):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(id, str) and id for id in value):
                raise ValueError(f'`{name}` must be a list of ids, got {value!r:.80}')
            object.__setattr__(self, name, tuple(value))

    def to_json(self) -> str:
        """The round as one line of strict JSON in ASCII, without the line break."""
        return json.dumps(asdict(self), allow_nan=False)


def read_rounds(root: str | Path) -> list[Round]:
    """The rounds of a pool that another process may be writing; none where there is no ``rounds.jsonl``.

    What follows the last line break is a line still being written, and does not count.

    Raises:
        ValueError: On the first line that is wrong, or does not follow from those before it; names file and line.
    """
    path = Path(root) / ROUNDS_FILE
    if not path.is_file():
        return []
    data = path.read_bytes()
    rounds: list[Round] = []
    for number, line in enumerate(data[:complete_length(data)].split(b'\n')[:-1], start=1):
        try:
            rounds.append(_parse(line))
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: {error}. Restore the file, or delete the pool and train from the '
                             'start.') from error
    try:
        _check_sequence(rounds)
    except ValueError as error:
        raise ValueError(f'{path}: {error}. Restore the file, or delete the pool and train from the start.') from error
    return rounds


def append_round(root: str | Path, round: Round) -> None:
    """Add a round; when this returns it is on the disk. A torn last line is cut off before.

    Raises:
        ValueError: If it does not follow from the rounds before it.
        OSError: If it cannot be written; the file is as before then.
    """
    path = Path(root) / ROUNDS_FILE
    _check_sequence([*read_rounds(root), round])
    if path.is_file():
        os.truncate(path, complete_length(path.read_bytes()))
    append_lines(path, round.to_json())


def write_rounds(root: str | Path, rounds: Iterable[Round]) -> None:
    """Write all rounds anew, as when some are taken back; there is the old file or the new one at any moment.

    Raises:
        ValueError: If a round does not follow from those before it.
    """
    rounds = list(rounds)
    _check_sequence(rounds)
    atomic_write(Path(root) / ROUNDS_FILE, ''.join(f'{round.to_json()}\n' for round in rounds).encode('ascii'))


def live_ids(rounds: Sequence[Round], iteration: int | None = None) -> list[str]:
    """Ids that are drawn at a training iteration, oldest first; None for a time when all rounds count."""
    live: dict[str, None] = {}
    for round in rounds:
        if iteration is None or round.usable_from <= iteration:
            live.update(dict.fromkeys(round.ids))
            for id in round.retired:
                live.pop(id, None)
    return list(live)


def published_ids(rounds: Sequence[Round]) -> list[str]:
    """All ids that ever were published, in their order, retired ones too."""
    return [id for round in rounds for id in round.ids]


def _parse(line: bytes) -> Round:
    try:
        values = strict_json(line.decode('ascii'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'it is not strict JSON ({error})') from error
    if not isinstance(values, dict) or values.keys() != set(_KEYS):
        raise ValueError(f'it must be an object with exactly the keys {", ".join(_KEYS)}, got {values!r:.80}')
    return Round(**values)


def _check_sequence(rounds: Sequence[Round]) -> None:
    """Raise ValueError unless rounds ascend, publish an id once, and retire what is live."""
    published: set[str] = set()
    live: set[str] = set()
    for place, round in enumerate(rounds):
        before = rounds[place - 1] if place else None
        if before is not None and (round.round <= before.round or round.usable_from < before.usable_from):
            raise ValueError(f'round {round.round}, usable from {round.usable_from}, must come after round '
                             f'{before.round}, usable from {before.usable_from}')
        again = [id for id in round.ids if id in published] + (list(round.ids) if _repeats(round.ids) else [])
        if again:
            raise ValueError(f'round {round.round} publishes {again[0]!r}, which was published before')
        unknown = [id for id in round.retired if id not in live]
        if unknown or _repeats(round.retired):
            raise ValueError(f'round {round.round} retires {(unknown or round.retired)[0]!r}, which is not live')
        published.update(round.ids)
        live = (live - set(round.retired)) | set(round.ids)


def _repeats(ids: Sequence[str]) -> bool:
    return len(set(ids)) < len(ids)
