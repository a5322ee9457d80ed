"""GrowingPool: rounds come in, the oldest leave, and what is taken back is gone."""
from pathlib import Path

import pytest
from toy_generators import sample

from mmsynth.online import pool as module
from mmsynth.online.pool import GrowingPool
from mmsynth.pool import Pool, read_records
from mmsynth.pool.rounds import ROUNDS_FILE, Round, live_ids, read_rounds

CLASSES, PALETTE = ('a', 'b', 'c'), ((0, 0, 0), (9, 9, 9), (99, 99, 99))


def growing(root: Path, max_samples: int = 3, **settings) -> GrowingPool:
    return GrowingPool(root, settings, CLASSES, PALETTE, max_samples)


def fill(pool: GrowingPool, rounds: int, size: int = 2) -> None:
    """Rounds of ``size`` samples 'ROUND-PLACE', round r usable from iteration 10 r."""
    for number in range(rounds):
        pool.publish(number, 10 * number, [sample(f'{number}-{place}', place) for place in range(size)], dropped=1)


def stored(root: Path) -> list[str]:
    return [record.id for record in read_records(root)]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*')
            if path.is_file() and path.name != '.lock'}


def test_the_oldest_retire_and_keep_their_files(tmp_path: Path) -> None:
    pool = growing(tmp_path)
    fill(pool, 3)
    assert read_rounds(tmp_path) == pool.rounds == [
        Round(0, 0, ('0-0', '0-1'), (), 1),
        Round(1, 10, ('1-0', '1-1'), ('0-0', ), 1),
        Round(2, 20, ('2-0', '2-1'), ('0-1', '1-0'), 1)]
    assert live_ids(pool.rounds, 15) == ['0-1', '1-0', '1-1']
    assert pool.live() == ['1-1', '2-0', '2-1']
    assert len(stored(tmp_path)) == 6


def test_sweep_deletes_what_is_not_drawn_from_an_iteration_on(tmp_path: Path) -> None:
    pool = growing(tmp_path)
    fill(pool, 3)
    assert [pool.sweep(iteration) for iteration in (9, 10, 19, 20, 20)] == [0, 1, 0, 2, 0]
    assert stored(tmp_path) == ['1-1', '2-0', '2-1']
    assert len(list((tmp_path / 'img_dir').iterdir())) == 3
    assert pool.missing(20) == [] and pool.missing(15) == ['0-1', '1-0']


@pytest.mark.parametrize('published', [0, 1, 2, 3])
def test_rewind_leaves_no_trace(tmp_path: Path, published: int) -> None:
    once, again = growing(tmp_path / 'once'), growing(tmp_path / 'again')
    fill(once, published)
    fill(again, 3)
    again.close()
    with open(tmp_path / 'again' / ROUNDS_FILE, 'a') as file:
        file.write('{"round": 3, "usab')  # killed there
    again = growing(tmp_path / 'again')
    assert again.rewind(published) == 6 - 2 * published
    assert contents(tmp_path / 'again') == contents(tmp_path / 'once')
    fill_from = again.publish(published, 10 * published, [sample('new')], 0)
    assert again.rounds[-1] == fill_from


def test_samples_without_a_round_leave_with_rewind(tmp_path: Path) -> None:
    pool = growing(tmp_path)
    fill(pool, 1)
    sample('1-0').add_to(pool.pool)  # killed before the round's line
    pool.close()
    pool = growing(tmp_path)
    assert pool.rewind(1) == 1 and stored(tmp_path) == ['0-0', '0-1']


def test_rewind_needs_the_rounds_of_the_checkpoint(tmp_path: Path) -> None:
    pool = growing(tmp_path)
    fill(pool, 1)
    with pytest.raises(ValueError, match='2 rounds .* 1'):
        pool.rewind(2)


@pytest.mark.parametrize('where', ['a sample', 'the line'])
def test_a_full_disk_costs_the_round_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, 'No space left on device')

    pool = growing(tmp_path)
    fill(pool, 1)
    before = contents(tmp_path)
    samples = [sample('1-0'), sample('1-1')]
    with monkeypatch.context() as patch:
        if where == 'the line':
            patch.setattr(module, 'append_round', full)
        else:
            object.__setattr__(samples[1], 'add_to', full)
        with pytest.raises(OSError, match='No space left'):
            pool.publish(1, 10, samples, 0)
    assert contents(tmp_path) == before
    pool.publish(2, 20, [sample('2-0')], 0)
    assert pool.live() == ['0-0', '0-1', '2-0']


def test_a_new_pool_has_rounds_from_the_start(tmp_path: Path) -> None:
    growing(tmp_path)
    assert (tmp_path / ROUNDS_FILE).read_bytes() == b''  # or readers would take it for a finished pool


def test_another_config_is_refused_with_the_differences(tmp_path: Path) -> None:
    growing(tmp_path, num_per_round=4).close()
    with pytest.raises(ValueError, match='settings.num_per_round: 4 there, 5 here'):
        growing(tmp_path, num_per_round=5)


def test_a_damaged_list_of_rounds_frees_the_folder(tmp_path: Path) -> None:
    growing(tmp_path).close()
    (tmp_path / ROUNDS_FILE).write_text('nonsense\n')
    with pytest.raises(ValueError, match='rounds.jsonl, line 1'):
        growing(tmp_path)
    (tmp_path / ROUNDS_FILE).unlink()
    with Pool.resume(tmp_path) as pool:
        assert not len(pool)
