"""The options of a round, and which masks it generates images for."""
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_masks import MemoryMasks

from mmsynth.online import settings as module
from mmsynth.online.settings import RoundMasks
from mmsynth.synthesis.live_critics import with_critic, without_live_critics

LIVE = dict(type='T', dataset=dict(type='U', critic='runner', share=0.5, dataset=dict(type='D', pipeline=[1, (2, 3)])))


def round_masks(monkeypatch: pytest.MonkeyPatch, size: int, num_per_round: int = 3, seed: int = 0) -> RoundMasks:
    monkeypatch.setattr(module, 'build_dataset', lambda cfg: MemoryMasks([None] * size))
    return RoundMasks(dict(type='D'), num_per_round, seed)


@given(size=st.integers(1, 9), num_per_round=st.integers(1, 7), seed=st.integers(0, 3))
def test_every_mask_once_per_epoch(size: int, num_per_round: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        masks = round_masks(patch, size, num_per_round, seed)
    requests = [request for round in range(2 * size) for request in masks.requests(round, size)]
    assert [request.id for request in requests] == [f'{number:08d}' for number in range(len(requests))]
    for number in range(2 * num_per_round):
        epoch = requests[number * size:(number + 1) * size]
        assert sorted(request.index for request in epoch) == list(range(size))
        assert {request.repeat for request in epoch} == {number}
    assert len({request.seed for request in requests}) == len(requests)


def test_rounds_follow_from_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, other = round_masks(monkeypatch, 20), round_masks(monkeypatch, 20, seed=1)
    late = masks.requests(7, 20)
    assert late == round_masks(monkeypatch, 20).requests(7, 20)
    assert [request.index for request in late] != [request.index for request in other.requests(7, 20)]


def test_live_critics_are_found_and_replaced() -> None:
    critic = object()
    fixed = dict(type='D', critic=dict(type='mmsynth.SegmentorCritic'), masks=[LIVE['dataset']['dataset']])
    assert without_live_critics(fixed) == with_critic(fixed, critic) == fixed
    assert without_live_critics(LIVE) == dict(type='T', dataset=dict(type='D', pipeline=[1, (2, 3)]))
    replaced = with_critic(LIVE, critic)
    assert replaced['dataset']['critic'] is critic and replaced['dataset']['dataset'] == LIVE['dataset']['dataset']
    assert LIVE['dataset']['critic'] == 'runner'


def test_an_empty_data_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='`masks`: the data set is empty'):
        round_masks(monkeypatch, 0)
