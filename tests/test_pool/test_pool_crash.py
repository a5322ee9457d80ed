"""Whatever moment a writer ends at, the next one finds whole records and nothing else."""
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from mmsynth.pool import Pool, read_records
from mmsynth.utils import files

pytestmark = pytest.mark.slow

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))
GENERATOR = {'type': 'x', 'config_sha256': 'ab', 'weights_sha256': None}
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.uint8)

WRITER = '''
import sys, types
package = types.ModuleType("mmsynth")  # without the checks of the host stack: the test is about the pool alone
package.__path__ = [sys.argv[2]]
sys.modules["mmsynth"] = package
import numpy as np
from mmsynth.pool import Pool
image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
pool = Pool.create(sys.argv[1], {"run_seed": 0}, ("a", "b"), ((0, 0, 0), (255, 255, 255)))
print("ready", flush=True)
for number in range(100000):
    if not pool.has(f"s/{number}"):
        pool.add(f"s/{number}", image, np.zeros((64, 64), np.uint8), source_mask="m", prompt="p", seed=number,
                 generator={"type": "x", "config_sha256": "ab", "weights_sha256": None})
'''


def create(root):
    return Pool.create(root, {'run_seed': 0}, CLASSES, PALETTE)


def add(pool, id):
    return pool.add(id, IMAGE, MASK, source_mask='m', prompt='p', seed=0, generator=GENERATOR)


def contents(root):
    """All files but the lock and what was set aside, as paths in the pool."""
    return {str(path.relative_to(root)) for path in root.rglob('*')
            if path.is_file() and path.name != '.lock' and '.orphans' not in path.parts}


def assert_sound(root, ids):
    """Exactly these records, their files, and the two files of the pool."""
    records = read_records(root)
    assert [record.id for record in records] == list(ids)
    assert contents(root) == {'pool.json', 'manifest.jsonl', *(record.image for record in records),
                              *(record.mask for record in records)}
    pool = Pool.open(root)
    for record in records:
        assert np.array_equal(pool.load_image(record), IMAGE) and np.array_equal(pool.load_mask(record), MASK)


def test_a_writer_killed_at_random_moments_continues(tmp_path):
    rng, package = random.Random(0), os.path.dirname(os.path.dirname(files.__file__))
    reached = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path), package], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b'ready\n'
        time.sleep(rng.uniform(0.02, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # a kill alone never loses a record's files
            create(tmp_path).close()
        assert len(read_records(tmp_path)) >= reached
        reached = len(read_records(tmp_path))
        assert_sound(tmp_path, [f's/{number}' for number in range(reached)])
    assert reached > 0


def test_a_torn_line_is_cut_wherever_it_tore(tmp_path):
    with create(tmp_path) as pool:
        add(pool, 'a')
        length = (tmp_path / 'manifest.jsonl').stat().st_size
        add(pool, 'b')
    whole = (tmp_path / 'manifest.jsonl').read_bytes()
    for end in range(length, len(whole), 37):
        (tmp_path / 'manifest.jsonl').write_bytes(whole[:end])
        assert len(read_records(tmp_path)) == 1
        with create(tmp_path) as pool:
            assert not pool.has('b')
            add(pool, 'b')
        assert_sound(tmp_path, 'ab')


def test_temporary_files_go_and_other_files_stay(tmp_path):
    with create(tmp_path) as pool:
        add(pool, 'a')
    for name in ('img_dir/.tmp-12', 'ann_dir/.tmp-12', '.tmp-12'):
        (tmp_path / name).write_bytes(b'half')
    (tmp_path / 'report.html').write_text('mine')
    create(tmp_path).close()
    (tmp_path / 'report.html').unlink()
    assert_sound(tmp_path, 'a')


@pytest.mark.parametrize('lose', [os.unlink, lambda path: os.truncate(path, 0)])
def test_records_without_files_are_dropped_with_one_warning(tmp_path, lose):
    with create(tmp_path) as pool:
        records = [add(pool, id) for id in 'abcd']
    lose(tmp_path / records[1].image)
    lose(tmp_path / records[3].mask)
    with pytest.warns(UserWarning, match="2 of 4 records .* first is 'b'") as caught:
        pool = create(tmp_path)
    assert len(caught) == 1
    with pool:
        assert_sound(tmp_path, 'ac')
        add(pool, 'b')
    assert_sound(tmp_path, 'acb')


def test_a_lost_manifest_does_not_cost_the_images(tmp_path):
    with create(tmp_path) as pool:
        record = add(pool, 'a')
    (tmp_path / 'manifest.jsonl').unlink()
    with pytest.raises(ValueError, match='has images but no manifest.jsonl'):
        create(tmp_path)
    assert (tmp_path / record.image).is_file()


@pytest.mark.parametrize('left', [[], ['.lock'], ['.lock', '.tmp-0'], ['.lock', 'pool.json'],
                                  ['.lock', 'pool.json', 'img_dir'], ['.lock', 'pool.json', 'img_dir', 'ann_dir']])
def test_create_killed_at_any_point_can_be_repeated(tmp_path, left):
    create(tmp_path / 'whole').close()
    root = tmp_path / 'pool'
    root.mkdir()
    for name in left:
        source = tmp_path / 'whole' / name
        if source.is_dir():
            (root / name).mkdir()
        else:
            (root / name).write_bytes(source.read_bytes() if source.exists() else b'half')
    with create(root) as pool:
        add(pool, 'a')
    assert_sound(root, 'a')


@pytest.mark.parametrize('call', range(1, 7))
@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_pool_as_it_was(tmp_path, monkeypatch, call, error):
    """The n-th fsync of an addition fails: image, its folder, mask, its folder, manifest (the 6th is never reached)."""
    calls, real = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise error
        real(descriptor)

    with create(tmp_path) as pool:
        add(pool, 'a')
        monkeypatch.setattr(files.os, 'fsync', failing)
        if call < 6:
            with pytest.raises(type(error)):
                add(pool, 'b')
            assert not pool.has('b')
            assert_sound(tmp_path, 'a')
        add(pool, 'b')
    assert_sound(tmp_path, 'ab')


def test_a_file_size_limit_like_a_full_disk(tmp_path):
    """A real short write by the system, not a simulated one."""
    with create(tmp_path) as pool:
        add(pool, 'a')
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            with pytest.raises(OSError):
                add(pool, 'b')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert_sound(tmp_path, 'a')
        add(pool, 'b')
    assert_sound(tmp_path, 'ab')


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path):
    """Also a real short write."""
    path = tmp_path / 'lines'
    files.append_lines(path, 'first')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError):
            files.append_lines(path, 'x' * 9000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == 'first\n'
