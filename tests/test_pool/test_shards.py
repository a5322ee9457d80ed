"""Several writers of one pool: the same pool for any number of them, whoever is killed; and who is refused."""
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmsynth.pool import Pool, read_records
from mmsynth.pool import shards as module
from mmsynth.pool.index import FILTERED
from mmsynth.utils.shards import Shard

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))
GENERATOR = dict(type='x', config_sha256='ab', weights_sha256=None)
IDS = [f'tile/{number}' for number in range(10)]


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, '_WAIT', 0.05)


def create(root: Path, shard: str | None = None, **settings: object) -> Pool:
    return Pool.create(root, settings, CLASSES, PALETTE, shard=None if shard is None else Shard.parse(shard))


def add(pool: Pool, id: str) -> None:
    rng = np.random.default_rng(IDS.index(id))
    pool.add(id, rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), rng.integers(0, 2, (4, 4), dtype=np.uint8),
             source_mask='m', prompt='', seed=IDS.index(id), generator=GENERATOR,
             guidance=dict(name='CRFM', trace=[dict(step=0, loss_before=rng.random())]))


def fill(pool: Pool, shard: str, ids: list[str] = IDS) -> bool:
    """What a process does: its own share, then it says that it is done."""
    for id in Shard.parse(shard).of(ids):
        if not pool.has(id):
            add(pool, id)
    return pool.finish(ids)


def kill(pool: Pool) -> None:
    """As if its process had ended: nothing is merged, and nobody holds its locks."""
    pool._lock.release()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*'))
            if path.is_file() and not any(part.startswith('.') for part in path.relative_to(root).parts)}


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one writer writes."""
    root = tmp_path_factory.mktemp('pools') / 'whole'
    with create(root) as pool:
        assert fill(pool, '0/1')
    assert len(json.loads(contents(root)['traces.jsonl'].splitlines()[0])['trace']) == 1
    return contents(root)


@pytest.mark.parametrize('count', [1, 2, 4])
@pytest.mark.parametrize('at_once', [True, False])
def test_any_number_of_writers_write_the_same_bytes(tmp_path: Path, whole: dict[str, bytes], count: int,
                                                    at_once: bool) -> None:
    names = [f'{index}/{count}' for index in random.Random(count).sample(range(count), count)]
    if at_once:
        pools = [create(tmp_path, name) for name in names]
        finished = []
        for pool, name in zip(pools, names):
            if name == names[-1]:
                for other in pools[:-1]:
                    other.close()
            finished.append(fill(pool, name))
        pools[-1].close()
    else:
        finished = []
        for name in names:
            with create(tmp_path, name) as pool:
                finished.append(fill(pool, name))
    assert finished == [False] * (count - 1) + [True] and contents(tmp_path) == whole


def test_tools_see_what_is_there_while_it_is_written(tmp_path: Path) -> None:
    one, other = create(tmp_path, '0/2'), create(tmp_path, '1/2')
    for id in IDS[:2]:
        add(one, id)
    add(other, IDS[2])
    opened = Pool.open(tmp_path)
    assert [record.id for record in opened.records] == IDS[:3] and opened.has(IDS[2]) and len(opened) == 3
    assert [opened.load_trace(record) for record in opened.records] == [
        one.load_trace(one.get(IDS[0])), one.load_trace(one.get(IDS[1])), other.load_trace(other.get(IDS[2]))]
    one.close()
    other.close()


@pytest.mark.parametrize('counts', [(2, 4), (4, 1), (3, 2), (2, None)])
def test_a_killed_run_goes_on_with_another_number(tmp_path: Path, whole: dict[str, bytes],
                                                  counts: tuple[int, int | None]) -> None:
    before, after = counts
    for index in range(before):
        pool = create(tmp_path, f'{index}/{before}')
        for id in Shard(index, before).of(IDS)[:index + 1]:
            add(pool, id)
        kill(pool)
    found = len(read_records(tmp_path))
    assert 0 < found < len(IDS)
    (tmp_path / 'img_dir' / 'x-0123456789ab.png').write_bytes(b'half')
    for index in range(after or 1):
        with create(tmp_path, None if after is None else f'{index}/{after}') as pool:
            assert len(pool) >= found
            fill(pool, f'{index}/{after or 1}')
    if after is None:  # which did not know the order when it merged what it found
        assert len(read_records(tmp_path)) == len(IDS)
    else:
        assert contents(tmp_path) == whole


def test_one_of_several_is_killed_and_comes_back(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """While the others write: their files without a line are not touched."""
    one, other = create(tmp_path, '0/2'), create(tmp_path, '1/2')
    add(one, IDS[0])
    add(other, IDS[1])
    kill(one)
    lists = tmp_path / 'shards' / '0-of-2'
    for name in ('manifest.jsonl', 'traces.jsonl'):
        with open(lists / name, 'ab') as file:
            file.write(b'{"id": "tile/2"')
    in_flight = tmp_path / 'img_dir' / 'of-the-other-0123456789ab.png'
    in_flight.write_bytes(b'half')
    with create(tmp_path, '0/2') as one:
        assert in_flight.is_file() and one.has(IDS[0]) and not one.has(IDS[2])
        assert not fill(one, '0/2')
    in_flight.unlink()
    with other:
        assert fill(other, '1/2')
    assert contents(tmp_path) == whole


def test_a_lost_image_of_a_shard_is_made_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with create(tmp_path, '0/2') as pool:
        fill(pool, '0/2')
        lost = pool.get(IDS[2])
    (tmp_path / lost.image).unlink()
    with pytest.warns(UserWarning, match="1 of 5 records .*'tile/2'"):
        pool = create(tmp_path, '0/2')
    with pool:
        fill(pool, '0/2')
    with create(tmp_path, '1/2') as pool:
        assert fill(pool, '1/2')
    assert contents(tmp_path) == whole


@pytest.mark.parametrize('step', ['traces', 'manifest', 'half of the lists'])
def test_a_merge_that_is_killed_is_done_again(tmp_path: Path, whole: dict[str, bytes], step: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path, '0/2') as pool:
        fill(pool, '0/2')

    def dies(*arguments: object) -> None:
        if step == 'half of the lists':
            (tmp_path / 'shards' / '0-of-2' / 'traces.jsonl').unlink()
            (tmp_path / 'shards' / '1-of-2' / 'manifest.jsonl').unlink()
        raise KeyboardInterrupt

    with create(tmp_path, '1/2') as pool, monkeypatch.context() as patch:
        patch.setattr(module, 'write_manifest', dies) if step == 'traces' else patch.setattr(
            module.shutil, 'rmtree', dies)
        with pytest.raises(KeyboardInterrupt):
            fill(pool, '1/2')
    assert len(read_records(tmp_path)) == len(IDS)
    with create(tmp_path, '1/2') as pool:
        assert len(pool) == len(IDS) and fill(pool, '1/2')
    assert contents(tmp_path) == whole


def test_a_shard_is_repeated_after_the_merge(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """As when it had samples that could not be generated."""
    for index in range(2):
        with create(tmp_path, f'{index}/2') as pool:
            for id in Shard(index, 2).of(IDS):
                if id != IDS[-1]:
                    add(pool, id)
            pool.finish(IDS)
    assert len(read_records(tmp_path)) == len(IDS) - 1 and not (tmp_path / 'shards').exists()
    with create(tmp_path, '1/2') as pool:
        assert fill(pool, '1/2')
    assert contents(tmp_path) == whole


def test_a_pool_that_grows_keeps_the_numbers_of_its_records(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        for id in IDS[4:6]:
            add(pool, id)
    for index in range(2):
        with create(tmp_path, f'{index}/2') as pool:
            fill(pool, f'{index}/2')
    assert [record.id for record in read_records(tmp_path)] == IDS[4:6] + IDS[:4] + IDS[6:]


def test_updates_of_several_are_merged(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        fill(pool, '0/1')
    for index in range(2):
        with Pool.resume(tmp_path, shard=Shard(index, 2)) as pool:
            own = list(pool.records)[index::2]
            pool.update([replace(record, filter=dict(keep=index == 0)) for record in own],
                        filtered={record.id: np.zeros((4, 4), np.uint8) for record in own})
            with pytest.raises(RuntimeError, match='several shards'):
                pool.write_kept()
            assert sum(record.filter is not None for record in Pool.open(tmp_path).records) == 5 * (index + 1)
            if pool.finish(IDS, needs=FILTERED):
                assert index == 1 and len(pool.write_kept()) == 5
    records = read_records(tmp_path)
    assert [record.id for record in records] == IDS
    assert [record.filter['keep'] for record in records] == [True, False] * 5 and not (tmp_path / 'shards').exists()


def test_a_torn_update_of_one_that_comes_back(tmp_path: Path) -> None:
    """While another writes, so that nothing is merged."""
    with create(tmp_path) as pool:
        fill(pool, '0/1')
    one, other = (Pool.resume(tmp_path, shard=Shard(index, 2)) for index in range(2))
    one.update([replace(one.get(IDS[0]), filter=dict(keep=True))])
    kill(one)
    with open(tmp_path / 'shards' / '0-of-2' / 'manifest.journal.jsonl', 'ab') as file:
        file.write(b'{"id": "tile/2"')
    with Pool.resume(tmp_path, shard=Shard(0, 2)) as one:
        one.update([replace(one.get(IDS[2]), filter=dict(keep=False))])
    other.close()
    assert [record.filter for record in Pool.resume(tmp_path).records][:4] == [
        dict(keep=True), None, dict(keep=False), None]


def test_who_is_refused(tmp_path: Path) -> None:
    pool = create(tmp_path, '0/2')
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path)) + ' is being written by process'):
        create(tmp_path)
    with pytest.raises(RuntimeError, match='0-of-2 is being written by process'):
        create(tmp_path, '0/2')
    with pytest.raises(RuntimeError, match='written by shard 0-of-2.*`shard` 1-of-4'):
        create(tmp_path, '1/4')
    with pytest.raises(ValueError, match='made with other settings'):
        create(tmp_path, '1/2', steps=3)
    with pytest.raises(RuntimeError, match='several shards'):
        pool.remove([])
    create(tmp_path, '1/2').close()
    pool.close()
    with create(tmp_path), pytest.raises(RuntimeError, match='is being written by process'):
        create(tmp_path, '0/2')


def test_shards_that_all_fail_before_their_first_sample_leave_no_pool(tmp_path: Path) -> None:
    """So that the corrected run is not held to the settings of the failed one."""
    with pytest.raises(KeyError), create(tmp_path, '0/2'):
        with pytest.raises(KeyError), create(tmp_path, '1/2'):
            raise KeyError
        assert (tmp_path / 'pool.json').is_file()
        raise KeyError
    assert contents(tmp_path) == {}
    create(tmp_path, '0/2', steps=5).close()


WRITER = '''
import sys, types
package = types.ModuleType("mmsynth")  # without the checks of the host stack: the test is about the pool alone
package.__path__ = [sys.argv[3]]
sys.modules["mmsynth"] = package
sys.path.insert(0, sys.argv[4])
import test_shards as test
print("ready", flush=True)
sys.stdin.readline()
with test.create(test.Path(sys.argv[1]), sys.argv[2]) as pool:
    test.fill(pool, sys.argv[2])
'''


@pytest.mark.slow
@pytest.mark.process
def test_processes_that_are_killed_at_random_moments(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Three at once, some of them killed in the midst; then two that come to the end."""
    package, rng = Path(module.__file__).parents[1], random.Random(0)
    for count, kill_them in ((3, True), (3, True), (2, False)):
        processes = [subprocess.Popen(
            [sys.executable, '-c', WRITER, str(tmp_path / 'pool'), f'{index}/{count}', str(package),
             str(Path(__file__).parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for index in range(count)]
        for process in processes:
            assert process.stdout.readline() == b'ready\n'
        for process in processes:
            process.stdin.write(b'\n')
            process.stdin.close()
        for process in processes:
            if kill_them:
                time.sleep(rng.uniform(0, 0.03))
                process.kill()
            assert process.wait() in ((0, -signal.SIGKILL) if kill_them else (0, ))
            process.stdout.close()
    assert contents(tmp_path / 'pool') == whole


def test_subfolders(tmp_path: Path) -> None:
    with create(tmp_path) as pool:
        for number, id in enumerate('abc'):
            pool.add(id, np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), source_mask='m', prompt='', seed=0,
                     generator=GENERATOR, subfolder=f'{number // 2:03d}')
        pool.update([replace(pool.get('c'), filter=dict(keep=True))], filtered=dict(c=np.zeros((4, 4), np.uint8)))
        assert pool.write_kept() == [pool.get('c').image[8:-4]]
    (tmp_path / 'img_dir' / '001' / '.tmp-1').write_bytes(b'half')
    (tmp_path / 'img_dir' / '001' / 'x-0123456789ab.png').write_bytes(b'half')
    with Pool.resume(tmp_path) as pool:
        assert [path.split('/')[1] for record in pool.records for path in record.files] == ['000'] * 4 + ['001'] * 3
        assert (tmp_path / 'kept.txt').is_file() and len(list((tmp_path / 'img_dir').rglob('*.*'))) == 3
        pool.remove(['c'])
    assert len(list(tmp_path.rglob('*.png'))) == 4 + 1  # the orphan
    with create(tmp_path / 'other') as pool, pytest.raises(ValueError, match='`image` must be'):
        pool.add('a', np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), source_mask='m', prompt='', seed=0,
                 generator=GENERATOR, subfolder='..')
