"""Mask configs whose critic is the segmentor in training: ``critic='runner'``, or 'ema' for its average."""
from collections.abc import Callable, Mapping
from typing import Any

from mmsynth.guidance import SegmentorCritic

LIVE = ('runner', 'ema')


def with_critic(cfg: Any, critic: SegmentorCritic) -> Any:
    """Return the config with a critic in the place of 'runner' and 'ema'."""
    return _replace_live(cfg, lambda part: {key: with_critic(value, critic) for key, value in part.items()}
                         | dict(critic=critic))


def without_live_critics(cfg: Any) -> Any:
    """Return the config with the data sets inside in the place of those that ask the segmentor in training."""
    return _replace_live(cfg, lambda part: without_live_critics(part['dataset']))


def _replace_live(cfg: Any, replace: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Return the config with ``replace(part)`` in the place of each part whose critic is 'runner' or 'ema'."""
    if isinstance(cfg, Mapping):
        if isinstance(cfg.get('critic'), str) and cfg['critic'] in LIVE:
            return replace(cfg)
        return {key: _replace_live(value, replace) for key, value in cfg.items()}
    return type(cfg)(_replace_live(value, replace) for value in cfg) if isinstance(cfg, (list, tuple)) else cfg
