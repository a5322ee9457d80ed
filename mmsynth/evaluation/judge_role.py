"""The rule that no segmentor judges what it guided, unless that is asked for and stated.

A critic finds in the images what it asked for, so its own predictions say little about their quality.
"""
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log

from mmsynth.guidance.critic_weights import critic_hashes
from mmsynth.pool import Pool

INDEPENDENT = 'did not guide'
CRITIC = 'the critic itself'
UNKNOWN = 'unknown: weights without a hash'


def check_judge(pool: Pool, judge_hash: str | Sequence | None, *, allow_critic: bool = False) -> str:
    """Hold a judge against the critic that guided a pool, by the hashes of their weights.

    Args:
        pool: The pool that is judged; its settings name its critic.
        judge_hash: :func:`~mmsynth.utils.hashes.file_hash` of the judge's checkpoint, one per member for an
            ensemble; None if it has none.
        allow_critic: Let the critic judge.

    Returns:
        The judge's role, for the results to carry: ``INDEPENDENT``, ``CRITIC`` or ``UNKNOWN``.

    Raises:
        ValueError: If judge and critic are the same and ``allow_critic`` is off.
    """
    guidance = pool.settings.get('guidance')
    critics = [] if guidance is None else list(_flat(guidance.get('critic_weights_sha256')))
    return _role(critics, judge_hash, f'the pool {pool.root}', allow_critic)


def check_judge_of_guidance(guidance: Mapping[str, Any] | None, judge_hash: str | Sequence | None, *,
                            allow_critic: bool = False) -> str:
    """As :func:`check_judge`, with the config of a guidance in the pool's place; None or empty for no guidance.

    Raises:
        ValueError: If judge and critic are the same and ``allow_critic`` is off.
    """
    critics = critic_hashes(guidance['critic']) if guidance and guidance.get('critic') else []
    return _role(critics, judge_hash, 'this config (`synthesis.guidance`)', allow_critic)


def _role(critics: Sequence[str | None], judge_hash: str | Sequence | None, guided: str, allow_critic: bool) -> str:
    if not critics:
        return INDEPENDENT
    judge = list(_flat(judge_hash))
    same = [weights for weights in judge if weights is not None and weights in critics]
    if same:
        if not allow_critic:
            raise ValueError(f'the judge (weights {same[0]}) is the critic of {guided} (weights {same[0]}), which '
                             'finds in the images what it asked for. Give a segmentor that did not guide, or set '
                             '`allow_critic` (--allow-critic) to have the results say that the critic judged.')
        return CRITIC
    if None in judge or None in critics:
        print_log(f'whether the judge is the critic of {guided} cannot be told: the weights of the '
                  f'{"judge" if None in judge else "critic"} have no file to compare.', logger='current',
                  level=logging.WARNING)
        return UNKNOWN
    return INDEPENDENT


def _flat(hashes: str | Sequence | None) -> Iterator[str | None]:
    """The hashes of one critic or of an ensemble's."""
    if hashes is None or isinstance(hashes, str):
        yield hashes
    else:
        for item in hashes:
            yield from _flat(item)
