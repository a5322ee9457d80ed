"""Disks that are full, read-only, or gone: a named error, nothing half-written, and the same command goes on later."""
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import NAMES, difference
from forks import LONG, Write, kill
from safetensors.torch import load_file

from mmsynth.pool import Pool
from mmsynth.pool.reader import FileCheck

if TYPE_CHECKING:
    from commands import Command

pytestmark = pytest.mark.slow

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9) if LONG else (0.6, )
PAGE = 4096


class Disk:
    """A small file system in memory in the place of a folder.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if os.name != 'posix' or os.geteuid() or not shutil.which('mount'):
            pytest.skip('only root can mount a small disk')
        made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', folder], capture_output=True,
                              text=True)
        if made.returncode:
            pytest.skip(f'no disk can be mounted here: {made.stderr.strip()}')

    def change(self, options: str) -> None:
        """Give it another size (``size=64m``), or make it read-only (``ro``, ``rw``)."""
        subprocess.run(['mount', '-o', f'remount,{options}', self.folder], check=True)


@pytest.fixture
def disk() -> Iterator[Callable[['Command'], Disk]]:
    """Puts a disk in the place of the folder of a command, with what it starts from."""
    mounted: list[Path] = []

    def make(command: 'Command') -> Disk:
        shutil.rmtree(command.root, ignore_errors=True)
        command.root.mkdir(parents=True, exist_ok=True)
        made = Disk(command.root)
        mounted.append(command.root)
        if command.start is not None:
            shutil.copytree(command.start, command.root, dirs_exist_ok=True)
        return made

    yield make
    for folder in mounted:
        subprocess.run(['umount', '--lazy', folder], check=True)


def pages(root: Path) -> int:
    """Space that a folder takes on such a disk."""
    return sum(-(-path.stat().st_size // PAGE) for path in root.rglob('*') if path.is_file()) * PAGE


def assert_nothing_is_half_written(root: Path) -> None:
    """What a reader takes for a sample, or for an encoded input, is whole."""
    for manifest in root.rglob('manifest.jsonl'):
        if (manifest.parent / 'pool.json').is_file():
            pool = Pool.open(manifest.parent)
            check = FileCheck(pool.root, len(pool.classes))
            assert [check.fault(record) for record in pool.records] == [None] * len(pool)
    for path in root.rglob('*.safetensors'):
        assert load_file(path)
    assert not list(root.rglob('.tmp-*'))


@pytest.mark.parametrize('name', NAMES if LONG else ['synthesize', 'encode_latents', 'train'])
def test_a_full_disk(name: str, commands: dict[str, 'Command'], unbroken: Callable, disk: Callable,
                     survived: Callable) -> None:
    command, (_, expected) = commands[name], unbroken(name)
    needed = pages(command.root)
    for share in SHARES:
        before = 0 if command.start is None else pages(command.start)
        small = disk(command)
        small.change(f'size={before + int((needed - before) * share) // PAGE * PAGE}')
        ended = command.call()
        assert ended.status == 1 and 'No space left on device' in ended.error, ended
        if name not in ('train', 'online mixing'):  # mmengine does not say which checkpoint it could not write
            assert str(command.root) in ended.error
        assert_nothing_is_half_written(command.root)
        small.change('size=64m')
        command.call().check()
        assert not difference(command.result(command.root), expected)
        survived('disk full')


@pytest.mark.parametrize('name', NAMES if LONG else ['synthesize'])
def test_a_read_only_disk(name: str, commands: dict[str, 'Command'], unbroken: Callable, disk: Callable,
                          survived: Callable) -> None:
    """It is read-only when the command is called again after a kill; permission bits would not stop root."""
    command, (reference, expected) = commands[name], unbroken(name)
    drive = disk(command)
    command.call(at=len(reference.writes) // 2, fault=kill)
    drive.change('ro')
    ended = command.call()
    assert ended.status == 1 and f"Read-only file system: '{command.root}" in ended.error
    if name == 'synthesize':
        assert_nothing_is_half_written_but_temporaries(command.root)  # a reader needs to write nothing
    drive.change('rw')
    command.call().check()
    assert not difference(command.result(command.root), expected)
    survived('disk read-only')


def assert_nothing_is_half_written_but_temporaries(root: Path) -> None:
    pool = Pool.open(root)
    check = FileCheck(pool.root, len(pool.classes))
    assert len(pool) and [check.fault(record) for record in pool.records] == [None] * len(pool)


@pytest.mark.parametrize('name', NAMES if LONG else ['filter_pool'])
def test_a_folder_that_vanishes(name: str, commands: dict[str, 'Command'], unbroken: Callable,
                                survived: Callable) -> None:
    command, (reference, expected) = commands[name], unbroken(name)

    def vanish(write: Write) -> None:
        shutil.rmtree(command.root)

    for share in (0.2, 0.4, 0.6, 0.8) if LONG else (0.5, ):
        command.prepare()
        ended = command.call(at=int(len(reference.writes) * share), fault=vanish)
        assert ended.status == 1 and str(command.root) in ended.error, ended
        if command.start is not None:
            command.prepare()
        command.call().check()
        assert not difference(command.result(command.root), expected)
        survived('folder vanishes')


def test_masks_that_vanish(commands: dict[str, 'Command'], unbroken: Callable, small_run: Any,
                           survived: Callable) -> None:
    command, (reference, expected) = commands['synthesize'], unbroken('synthesize')
    masks, away = small_run.data / 'masks', small_run.data / 'elsewhere'
    command.prepare()
    try:
        ended = command.call(at=len(reference.writes) // 4, fault=lambda write: os.replace(masks, away))
    finally:
        os.replace(away, masks)
    assert ended.status == 1 and f'label {masks}/' in ended.error and 'does not exist' in ended.error
    assert_nothing_is_half_written(command.root)
    command.call().check()
    assert not difference(command.result(command.root), expected)
    survived('folder vanishes')
