"""Which masks a round paints: a seeded walk over a data set of masks, a pass after another."""
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from mmsynth.guidance import SegmentorCritic
from mmsynth.synthesis import Request, build_dataset
from mmsynth.utils import derive_seed

LIVE = ('runner', 'ema')  # critics that change while the training runs


class RoundMasks:
    """The masks of a run's rounds.

    A mask source that asks a critic, such as ``mmsynth.UncertainMasks``, may have ``critic='runner'`` or 'ema': it is
    built anew for every round and asks the segmentor as it is then.

    Args:
        cfg: Config of a data set of masks.
        num_per_round: Masks per round.
        seed: The run's.

    Raises:
        ValueError: If the data set is empty.
    """

    def __init__(self, cfg: Mapping[str, Any], num_per_round: int, seed: int) -> None:
        self._cfg = plain(cfg)
        self.num_per_round = num_per_round
        self.seed = seed
        self.live = has_live_critic(self._cfg)
        self._dataset = build_dataset(without_live(self._cfg))
        if not len(self._dataset):
            raise ValueError('`masks`: the data set is empty, so there is nothing to paint.')

    @property
    def metainfo(self) -> dict[str, Any]:
        return self._dataset.metainfo

    def dataset(self, segmentor: nn.Module | None) -> Dataset:
        """The data set of a round, by the segmentor as it is now."""
        if not self.live:
            return self._dataset
        assert segmentor is not None, 'masks that ask the segmentor in training need it'
        return build_dataset(with_critic(self._cfg, SegmentorCritic(segmentor=segmentor)))

    def requests(self, round: int, size: int) -> list[Request]:
        """What a round paints of a data set of ``size`` masks: a function of the seed, the round and the size.

        Every pass over the masks has an order of its own; a mask's repeat is the number of the pass.
        """
        requests, orders = [], {}
        for place in range(self.num_per_round):
            number = round * self.num_per_round + place
            turn, position = divmod(number, size)
            if turn not in orders:
                orders[turn] = np.random.default_rng(derive_seed(self.seed, 'masks', turn)).permutation(size)
            requests.append(Request(f'{number:08d}', int(orders[turn][position]), derive_seed(self.seed, round, place),
                                    repeat=turn))
        return requests


def has_live_critic(cfg: Any) -> bool:
    """Whether a config of masks has a critic that is in training."""
    if isinstance(cfg, Mapping):
        return cfg.get('critic') in LIVE if isinstance(cfg.get('critic'), str) else any(
            has_live_critic(value) for value in cfg.values())
    return isinstance(cfg, (list, tuple)) and any(has_live_critic(value) for value in cfg)


def with_critic(cfg: Any, critic: SegmentorCritic) -> Any:
    """The config with a critic in the place of the names of live ones."""
    if isinstance(cfg, Mapping):
        return {key: critic if key == 'critic' and isinstance(value, str) and value in LIVE else with_critic(
            value, critic) for key, value in cfg.items()}
    return type(cfg)(with_critic(value, critic) for value in cfg) if isinstance(cfg, (list, tuple)) else cfg


def without_live(cfg: Any) -> Any:
    """The config with the data sets inside in the place of those that ask a live critic."""
    if isinstance(cfg, Mapping):
        if isinstance(cfg.get('critic'), str) and cfg['critic'] in LIVE:
            return without_live(cfg['dataset'])
        return {key: without_live(value) for key, value in cfg.items()}
    return type(cfg)(without_live(value) for value in cfg) if isinstance(cfg, (list, tuple)) else cfg


def plain(cfg: Any) -> Any:
    """A config as plain dicts and lists, which can be copied and pickled."""
    if isinstance(cfg, Mapping):
        return {key: plain(value) for key, value in cfg.items()}
    return type(cfg)(plain(value) for value in cfg) if isinstance(cfg, (list, tuple)) else cfg
