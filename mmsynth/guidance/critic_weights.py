"""The weights files behind the config of a critic, also of one that is made of several."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsynth.utils.hashes import file_hash

_MEMBERS = ('critic', 'teacher', 'learner')  # AugmentedCritic's; ReducibleLossCritic's


def critic_checkpoints(critic: Mapping[str, Any]) -> list[str | None]:
    """List the weights files that a critic's config names, its members' in their order; None where it has none."""
    members = critic.get('critics') or [critic[name] for name in _MEMBERS if name in critic]
    if members:
        return [file for member in members for file in critic_checkpoints(member)]
    return [critic.get('checkpoint')]


def critic_hashes(critic: Mapping[str, Any]) -> list[str | None]:
    """Hash the files of :func:`critic_checkpoints`; None also for a file that is not there (yet, or any more)."""
    return [file_hash(file) if file is not None and Path(file).exists() else None
            for file in critic_checkpoints(critic)]
