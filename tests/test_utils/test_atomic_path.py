"""atomic_path: a folder or a file that appears when it is complete, or not at all."""
from pathlib import Path

import pytest

from mmsynth.utils.files import FolderLock, atomic_path


def write(path: Path, folder: bool) -> None:
    (path / 'part' if folder else path).write_text('whole')


@pytest.mark.parametrize('folder', [True, False])
def test_it_appears_at_the_end_and_nothing_else_stays(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / 'new' / 'x.pth'
    left = out.parent / '.tmp-x.pth'
    (left / 'of a killed run').mkdir(parents=True)
    (left / 'part of it').touch()
    with atomic_path(out, folder=folder) as draft:
        assert not out.exists() and draft.suffix == '.pth'
        write(draft, folder)
    assert [path.name for path in out.parent.iterdir()] == ['x.pth']
    assert (list(out.iterdir()) == [out / 'part']) if folder else out.read_text() == 'whole'


@pytest.mark.parametrize('folder', [True, False])
def test_after_an_error_there_is_nothing(tmp_path: Path, folder: bool) -> None:
    with pytest.raises(KeyError), atomic_path(tmp_path / 'x', folder=folder) as draft:
        write(draft, folder)
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('folder', [True, False])
def test_what_has_appeared_meanwhile_is_not_overwritten(tmp_path: Path, folder: bool) -> None:
    with pytest.raises(FileExistsError, match='`out`.*appeared meanwhile'), \
            atomic_path(tmp_path / 'x', folder=folder) as draft:
        write(draft, folder)
        (tmp_path / 'x').write_text('another')
    assert [path.name for path in tmp_path.iterdir()] == ['x'] and (tmp_path / 'x').read_text() == 'another'


def test_one_process_writes_it(tmp_path: Path) -> None:
    (tmp_path / '.tmp-x').mkdir()
    with FolderLock(tmp_path / '.tmp-x'), pytest.raises(RuntimeError, match='is being written by process'):
        with atomic_path(tmp_path / 'x', folder=False):
            raise AssertionError('not reached')
    assert (tmp_path / '.tmp-x').is_dir()
