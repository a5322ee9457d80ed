"""Opening a pool never deletes an image: what has no line is set aside, left alone, or stops the run."""
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmsynth.pool import Pool, recovery

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))
IMAGE, MASK = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)


def create(root: Path) -> Pool:
    return Pool.create(root, {}, CLASSES, PALETTE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed pool of three samples."""
    with create(tmp_path / 'pool') as pool:
        for id in 'abc':
            pool.add(id, IMAGE, MASK, source_mask='m', prompt='', seed=0,
                     generator=dict(type='x', config_sha256='', weights_sha256=None))
    return tmp_path / 'pool'


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(recovery, 'print_log', lambda text, **options: lines.append(text))
    return lines


def images(root: Path) -> int:
    """Images anywhere below a folder."""
    return len(list(root.rglob('img_dir/*.png')))


def test_an_emptied_manifest_stops_the_run(root: Path) -> None:
    manifest, journal = root / 'manifest.jsonl', root / 'manifest.journal.jsonl'
    lines = manifest.read_bytes()
    journal.write_bytes(lines)  # a killed filter's results
    manifest.write_bytes(b'')
    with pytest.raises(ValueError, match='3 images and an empty manifest.jsonl'):
        create(root)
    assert images(root) == 3 and journal.read_bytes() == lines


def test_a_last_line_without_its_break_counts(root: Path, log: list[str]) -> None:
    manifest = root / 'manifest.jsonl'
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-1])
    with create(root) as pool:
        assert len(pool) == 3
    assert manifest.read_bytes() == whole and not log and not (root / '.orphans').exists()


def test_a_torn_line_is_cut_off_with_a_word(root: Path, log: list[str]) -> None:
    manifest = root / 'manifest.jsonl'
    manifest.write_bytes(manifest.read_bytes()[:-9])
    create(root).close()
    assert 'was cut off' in log[0] and 'moved to .orphans/' in log[1] and images(root) == 3


def test_images_newer_than_a_restored_manifest_are_set_aside(root: Path, log: list[str]) -> None:
    manifest = root / 'manifest.jsonl'
    manifest.write_bytes(manifest.read_bytes().split(b'\n')[0] + b'\n')
    for _ in range(2):
        with create(root) as pool:
            assert [record.id for record in pool.records] == ['a']
    assert images(root / '.orphans') == 2 and images(root) == 3
    assert len(log) == 1 and '4 files without a line' in log[0]


def test_what_is_set_aside_twice_is_not_overwritten(root: Path) -> None:
    lines = (root / 'manifest.jsonl').read_bytes()
    for _ in range(2):
        with create(root) as pool:
            files = [root / path for path in pool.get('c').files]
        copies = [path.read_bytes() for path in files]
        (root / 'manifest.jsonl').write_bytes(b''.join(lines.splitlines(keepends=True)[:2]))
        create(root).close()
        (root / 'manifest.jsonl').write_bytes(lines)
        for path, copy in zip(files, copies):
            path.write_bytes(copy)
    assert images(root / '.orphans') == 2


def test_a_pair_of_the_users_own_stays(root: Path, log: list[str]) -> None:
    for folder in ('img_dir', 'ann_dir'):
        (root / folder / 'my_tile.png').write_bytes(b'mine')
    create(root).close()
    assert (root / 'img_dir' / 'my_tile.png').is_file() and (root / 'ann_dir' / 'my_tile.png').is_file()
    assert len(log) == 1 and '2 files are none of the pool' in log[0]


def test_nothing_is_touched_behind_a_link(root: Path, tmp_path: Path, log: list[str]) -> None:
    shutil.move(root / 'img_dir', tmp_path / 'elsewhere')
    os.symlink(tmp_path / 'elsewhere', root / 'img_dir')
    for name in ('x-0123456789ab.png', '.tmp-12'):
        (tmp_path / 'elsewhere' / name).write_bytes(b'of another pool')
    with create(root) as pool:
        assert len(pool) == 3
    assert (tmp_path / 'elsewhere' / 'x-0123456789ab.png').is_file() and len(log) == 1
    assert (tmp_path / 'elsewhere' / '.tmp-12').is_file()
