"""rounds.jsonl: its lines, what is live when, and files that were left in the middle of a line."""
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsynth.pool.rounds import ROUNDS_FILE, Round, append_round, live_ids, published_ids, read_rounds, write_rounds
from mmsynth.utils import files

FIRST = Round(0, 3, ('a', 'b'), dropped=2)
SECOND = Round(2, 7, ('c', ), retired=('a', ))


def test_live_ids_follow_the_iteration() -> None:
    rounds = [FIRST, SECOND]
    expected = {0: [], 2: [], 3: ['a', 'b'], 6: ['a', 'b'], 7: ['b', 'c'], 1000: ['b', 'c']}
    assert {iteration: live_ids(rounds, iteration) for iteration in expected} == expected
    assert live_ids(rounds) == ['b', 'c']
    assert published_ids(rounds) == ['a', 'b', 'c']


def test_a_line_is_as_agreed(tmp_path: Path) -> None:
    append_round(tmp_path, FIRST)
    assert (tmp_path / ROUNDS_FILE).read_bytes() == (
        b'{"round": 0, "usable_from": 3, "ids": ["a", "b"], "retired": [], "dropped": 2}\n')


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 4), max_size=8), keep=st.integers(1, 6))
def test_what_is_written_is_read(sizes: list[int], keep: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, written, live = tmp_path_factory.mktemp('pool'), [], []
    for number, size in enumerate(sizes):
        ids = tuple(f'{number}-{place}' for place in range(min(size, keep)))
        retired = tuple(live[:max(0, len(live) + len(ids) - keep)])
        live = [*live[len(retired):], *ids]
        written.append(Round(number, 2 * number, ids, retired))
        append_round(root, written[-1])
        assert live_ids(read_rounds(root), 2 * number) == live and len(live) <= keep
    assert read_rounds(root) == written


@pytest.mark.parametrize('cut', range(1, 40, 7))
def test_a_torn_last_line_does_not_count_and_goes(tmp_path: Path, cut: int) -> None:
    write_rounds(tmp_path, [FIRST])
    with open(tmp_path / ROUNDS_FILE, 'a') as file:
        file.write(SECOND.to_json()[:cut])
    assert read_rounds(tmp_path) == [FIRST]
    append_round(tmp_path, SECOND)
    assert read_rounds(tmp_path) == [FIRST, SECOND]


def test_an_offline_pool_has_no_rounds(tmp_path: Path) -> None:
    assert read_rounds(tmp_path) == []


def test_a_round_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    append_round(tmp_path, FIRST)
    before = (tmp_path / ROUNDS_FILE).read_bytes()
    monkeypatch.setattr(files.os, 'fsync', fail)
    with pytest.raises(OSError, match='No space left'):
        append_round(tmp_path, SECOND)
    assert (tmp_path / ROUNDS_FILE).read_bytes() == before


@pytest.mark.parametrize('values, message', [
    (dict(round=-1), '`round` must be an integer that is not negative, got -1'),
    (dict(usable_from=1.5), '`usable_from` must be an integer'),
    (dict(dropped=True), '`dropped` must be an integer'),
    (dict(ids='a'), '`ids` must be a list of ids'),
    (dict(retired=['']), '`retired` must be a list of ids'),
])
def test_fields_keep_their_rules(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Round(**dict(round=0, usable_from=0, ids=()) | values)


@pytest.mark.parametrize('following, message', [
    (Round(0, 9, ('c', )), 'round 0, usable from 9, must come after round 0, usable from 3'),
    (Round(1, 2, ('c', )), 'round 1, usable from 2, must come after'),
    (Round(1, 9, ('b', )), "round 1 publishes 'b', which was published before"),
    (Round(1, 9, ('c', 'c')), "round 1 publishes 'c'"),
    (Round(1, 9, ('c', ), ('c', )), "round 1 retires 'c', which is not live"),
    (Round(1, 9, ('c', ), ('a', 'a')), "round 1 retires 'a', which is not live"),
])
def test_a_round_must_follow_from_those_before(tmp_path: Path, following: Round, message: str) -> None:
    append_round(tmp_path, FIRST)
    with pytest.raises(ValueError, match=message):
        append_round(tmp_path, following)
    assert read_rounds(tmp_path) == [FIRST]


@pytest.mark.parametrize('line, message', [
    ('{', 'not strict JSON'),
    ('[]', 'exactly the keys round, usable_from, ids, retired, dropped'),
    (json.dumps(dict(round=1)), 'exactly the keys'),
    (SECOND.to_json().replace('7', 'NaN'), 'NaN is not JSON'),
    (SECOND.to_json().replace('"dropped": 0', '"dropped": -1'), '`dropped` must be'),
])
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / ROUNDS_FILE).write_text(f'{FIRST.to_json()}\n{line}\n')
    with pytest.raises(ValueError, match=rf'rounds.jsonl, line 2: .*{message}.* Restore the file'):
        read_rounds(tmp_path)


def test_a_file_whose_rounds_do_not_follow_is_refused(tmp_path: Path) -> None:
    (tmp_path / ROUNDS_FILE).write_text(f'{FIRST.to_json()}\n{FIRST.to_json()}\n')
    with pytest.raises(ValueError, match='must come after round 0'):
        read_rounds(tmp_path)
