"""Which process of several takes what."""
import pytest

from mmsynth.utils.shards import Shard


@pytest.mark.parametrize('text', ['4/4', '-1/4', '1', '1/0', 'a/b', '1/2/3', ''])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match='`shard` must be i/n'):
        Shard.parse(text)


def test_a_rank_of_torchrun_is_a_shard() -> None:
    assert Shard.of_environment(dict(RANK='1', WORLD_SIZE='4')) == Shard.parse('1/4')
    assert Shard.of_environment(dict(RANK='0', WORLD_SIZE='1')) is None
    assert Shard.of_environment(dict(WORLD_SIZE='4')) is None and Shard.of_environment({}) is None


@pytest.mark.parametrize('count', [1, 3, 7])
def test_each_item_is_of_one_shard(count: int) -> None:
    items = list(range(10))
    parts = [list(Shard(index, count).of(items)) for index in range(count)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
