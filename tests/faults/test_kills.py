"""Every command, killed at seeded writes and called again, leaves what an unbroken run leaves, to the last byte."""
import random
import signal
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from commands import ITERATIONS, NAMES, SAVED_EVERY, difference
from forks import LONG, killed_at_seeded_points, tear

if TYPE_CHECKING:
    from commands import Command

pytestmark = pytest.mark.slow

KILLS = 20 if LONG else 2
DEAD = (-signal.SIGKILL, -signal.SIGXFSZ)


@pytest.mark.parametrize('name', NAMES)
def test_killed_and_called_again(name: str, commands: dict[str, 'Command'], unbroken: Callable,
                                 survived: Callable) -> None:
    """Every third is killed once more while it makes good what the first left."""
    command, (reference, expected) = commands[name], unbroken(name)
    rng, problems = random.Random(1), []
    for number, (at, fault, what) in enumerate(killed_at_seeded_points(reference, KILLS, zlib.crc32(name.encode()))):
        command.prepare()
        assert command.call(at=at, fault=fault).status in DEAD, what
        if number % 3 == 2:
            command.call(at=rng.randrange(max(1, len(reference.writes) - at)), fault=fault)
        again = command.call()
        found = difference(command.result(command.root), expected) if not again.status else again.error
        if found:
            problems.append(f'{what}: {found}')
        else:
            survived(f'killed: {name}')
    assert not problems, '\n'.join(problems)


def test_killed_while_the_last_checkpoint_is_noted(commands: dict[str, 'Command'], unbroken: Callable,
                                                   survived: Callable) -> None:
    """mmengine writes the note in place, so that it is empty or cut for a moment."""
    command, (reference, expected) = commands['train'], unbroken('train')
    notes = [number for number, (kind, path) in enumerate(reference.writes)
             if kind == 'open' and path.endswith('last_checkpoint')]
    assert len(notes) == ITERATIONS // SAVED_EVERY
    for at, size in ((notes[0], 0), (notes[1], 20)) if LONG else ((notes[1], 0), ):
        command.prepare()
        assert command.call(at=at, fault=tear(size)).status in DEAD
        assert len((command.root / 'work' / 'last_checkpoint').read_text()) == size
        again = command.call().check()
        assert 'last_checkpoint was cut off' in again.output
        assert not difference(command.result(command.root), expected)
        survived('killed: train')
