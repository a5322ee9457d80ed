"""Who may judge: pools and configs with every kind of guidance, and the message of the mistake."""
import logging
from pathlib import Path
from typing import Any

import pytest
from colour_judges import ColourJudge

from mmsynth.evaluation import MaskConsistency, check_judge, check_judge_of_guidance, judge_role
from mmsynth.evaluation.judge_role import CRITIC, INDEPENDENT, UNKNOWN
from mmsynth.pool import Pool
from mmsynth.utils.hashes import file_hash

MISTAKE = r'the judge \(weights a1\) is the critic of the pool .* \(weights a1\).*set `allow_critic` \(--allow-critic\)'


def pool(root: Path, guidance: dict[str, Any] | None) -> Pool:
    with Pool.create(root, dict(guidance=guidance), ['road'], [(0, 0, 0)]) as made:
        return made


@pytest.mark.parametrize('critics', ['a1', ['a1', 'b2'], ['b2', ['c3', 'a1']]])
def test_the_critic_of_a_pool_is_no_judge(critics: str | list, tmp_path: Path) -> None:
    guided = pool(tmp_path, dict(settings={}, critic_weights_sha256=critics))
    with pytest.raises(ValueError, match=MISTAKE):
        check_judge(guided, 'a1')
    assert check_judge(guided, 'a1', allow_critic=True) == CRITIC == 'the critic itself'
    assert check_judge(guided, 'd4') == INDEPENDENT


def test_nobody_guided(tmp_path: Path) -> None:
    assert check_judge(pool(tmp_path, None), 'a1') == INDEPENDENT
    assert check_judge_of_guidance(None, 'a1') == check_judge_of_guidance({}, None) == INDEPENDENT


@pytest.mark.parametrize('critic, judge, whose', [(None, 'a1', 'critic'), (['b2', None], 'a1', 'critic'),
                                                  ('a1', None, 'judge')])
def test_weights_without_a_file_are_warned_about(critic: str | list | None, judge: str | None, whose: str,
                                                 tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(judge_role, 'print_log', lambda text, logger, level: said.append((text, level)))
    guided = pool(tmp_path, dict(settings={}, critic_weights_sha256=critic))
    assert check_judge(guided, judge) == UNKNOWN
    assert len(said) == 1 and said[0][1] == logging.WARNING
    assert f'cannot be told: the weights of the {whose} have no file' in said[0][0]


def test_the_critic_of_a_config(tmp_path: Path) -> None:
    weights = tmp_path / 'critic.pth'
    weights.write_bytes(b'weights')
    own = file_hash(weights)
    plain, other = dict(checkpoint=str(weights)), dict(checkpoint='other.pth')
    for critic in (plain, dict(critics=[other, plain]), dict(teacher=plain, learner=other),
                   dict(critic=dict(teacher=other, learner=plain), looks=2)):
        with pytest.raises(ValueError, match=rf'judge \(weights {own}\) is the critic of this config'):
            check_judge_of_guidance(dict(critic=critic), own)
    assert check_judge_of_guidance(dict(critic=dict(checkpoint=str(weights))), 'a1') == INDEPENDENT
    assert check_judge_of_guidance(dict(critic=dict(checkpoint=str(tmp_path / 'not_yet.pth'))), 'a1') == UNKNOWN


def test_an_ensemble_is_judged_by_every_member(tmp_path: Path) -> None:
    guided = pool(tmp_path, dict(settings={}, critic_weights_sha256='a1'))
    with pytest.raises(ValueError, match=MISTAKE):
        check_judge(guided, ['b2', 'a1'])
    assert check_judge(guided, ['b2', 'c3']) == INDEPENDENT and check_judge(guided, ['b2', None]) == UNKNOWN


def test_a_metric_with_a_judge_must_know_the_guidance() -> None:
    with pytest.raises(ValueError, match='MaskConsistency: `judge` goes with `guidance`.*got None'):
        MaskConsistency(ColourJudge())
