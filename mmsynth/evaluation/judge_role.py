"""The rule that no segmentor judges what it guided, unless that is asked for and said.

A critic finds in the images what it asked for, so its own reading of them says little about their quality.
"""
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MessageHub, print_log

from mmsynth.pool import Pool
from mmsynth.utils.hashes import file_hash

INDEPENDENT = 'did not guide'
CRITIC = 'the critic itself'
UNKNOWN = 'unknown: weights without a hash'


def check_judge(pool: Pool, judge_hash: str | None, *, allow_critic: bool = False) -> str:
    """Hold a judge against the critic that guided a pool, by the hashes of their weights.

    Args:
        pool: The pool that is judged; its settings name its critic.
        judge_hash: :func:`~mmsynth.utils.hashes.file_hash` of the judge's checkpoint; None if it has none.
        allow_critic: Let the critic judge.

    Returns:
        The judge's role, for the results to carry: ``INDEPENDENT``, ``CRITIC`` or ``UNKNOWN``.

    Raises:
        ValueError: If judge and critic are the same and ``allow_critic`` is off.
    """
    guidance = pool.settings.get('guidance')
    critics = [] if guidance is None else list(_flat(guidance.get('critic_weights_sha256')))
    return _role(critics, judge_hash, f'the pool {pool.root}', allow_critic)


def check_judge_of_guidance(guidance: Mapping[str, Any] | None, judge_hash: str | None, *,
                            allow_critic: bool = False) -> str:
    """As :func:`check_judge`, with the config of a guidance in the pool's place; None or empty for no guidance.

    Raises:
        ValueError: If judge and critic are the same and ``allow_critic`` is off.
    """
    critics = list(_critic_hashes(guidance['critic'])) if guidance and guidance.get('critic') else []
    return _role(critics, judge_hash, 'this config (`synthesis.guidance`)', allow_critic)


def running_guidance() -> Mapping[str, Any] | None:
    """``synthesis.guidance`` of the config that an mmengine runner is running in this process; None without one."""
    hub = MessageHub.get_current_instance()
    if 'cfg' not in hub.runtime_info:
        return None
    cfg = Config.fromstring(hub.get_info('cfg'), '.py')
    return (cfg.get('synthesis') or {}).get('guidance')


def _role(critics: Sequence[str | None], judge: str | None, guided: str, allow_critic: bool) -> str:
    if not critics:
        return INDEPENDENT
    if judge is not None and judge in critics:
        if not allow_critic:
            raise ValueError(f'the judge (weights {judge}) is the critic of {guided} (weights {judge}), which finds in '
                             'the images what it asked for. Give a segmentor that did not guide, or set '
                             '`allow_critic` (--allow-critic) to have the results say that the critic judged.')
        return CRITIC
    if judge is None or None in critics:
        print_log(f'whether the judge is the critic of {guided} cannot be told: the weights of the '
                  f'{"judge" if judge is None else "critic"} have no file to compare.', logger='current',
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


def _critic_hashes(critic: Mapping[str, Any]) -> Iterator[str | None]:
    """As they would stand in a pool; None also for a file that is not there (any more, or yet)."""
    if 'critics' in critic:
        for member in critic['critics']:
            yield from _critic_hashes(member)
        return
    checkpoint = critic.get('checkpoint')
    yield file_hash(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else None
