"""What a round generates: its options, checked together before anything heavy is built, and its masks."""
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from torch import nn

from mmsynth.filtering import ClassLossFilter
from mmsynth.guidance import SegmentorCritic
from mmsynth.guidance.critic_weights import critic_hashes
from mmsynth.registry import MODELS
from mmsynth.synthesis import Request, build_dataset, load_config
from mmsynth.synthesis.live_critics import LIVE, with_critic, without_live_critics
from mmsynth.utils import derive_seed
from mmsynth.utils.hashes import config_and_files_hash, config_hash, file_hash

ROUND_FILTER_OPTIONS = ('segmentor', 'class_losses', 'num_images')
RULE_OPTIONS = tuple(name for name in signature(ClassLossFilter).parameters if name not in ROUND_FILTER_OPTIONS)


class RoundSettings:
    """The options that decide what the samples of a run look like.

    Args:
        generator: ``config`` (path, or dict of a config with the generator as ``model``) and ``checkpoint``.
        masks: Config of the data set of masks to generate images for; None for ``synthesis.dataset`` of the generator's
            config. A mask source that asks a critic, such as ``mmsynth.UncertainMasks``, may ask 'runner' or 'ema'.
        guidance: Config of a guidance without its ``critic``; None for none.
        critic: What guides: 'runner' or 'ema', the segmentor in training or its average, which also filters unless the
            filter has a segmentor of its own; the config of a frozen critic, which only guides; or None.
        filter: Options of a :class:`~mmsynth.online.synthesizer.RoundFilter`; None for no filter.
        num_per_round: Masks per round.
        seed: The run's.

    Attributes:
        pool: All that decides what a sample looks like, but for the segmentor's weights: for the pool's header.
        classes: Names.
        palette: RGB colours in [0, 255].

    Raises:
        ValueError: If options are out of range or without effect; all such are named at once.
        FileNotFoundError: If a file does not exist.
    """

    def __init__(self,
                 generator: Mapping[str, Any],
                 *,
                 masks: Mapping[str, Any] | None = None,
                 guidance: Mapping[str, Any] | None = None,
                 critic: str | Mapping[str, Any] | None = 'runner',
                 filter: Mapping[str, Any] | None = None,
                 num_per_round: int = 64,
                 seed: int = 0) -> None:
        _check_options(generator, guidance, critic, filter, num_per_round)
        self.cfg = load_config(generator['config'])
        self.checkpoint: str = str(generator['checkpoint'])
        if not Path(self.checkpoint).exists():
            raise FileNotFoundError(f'`generator.checkpoint` {self.checkpoint} does not exist; train the generator '
                                    'first (tools/train.py).')
        self.guidance, self.filter = _as_dict(guidance), _as_dict(filter)
        self.critic = critic if isinstance(critic, str) else _as_dict(critic)
        self.seed = seed
        masks = masks or (self.cfg.get('synthesis') or {}).get('dataset')
        if masks is None:
            raise ValueError('`masks` is not given, and the config of the generator has no `synthesis.dataset`; name '
                             'the data set of masks to generate images for.')
        masks = ConfigDict(masks).to_dict()
        self.masks = RoundMasks(masks, num_per_round, seed)
        self.classes: Sequence[str] = self.masks.metainfo['classes']
        self.palette: Sequence[Sequence[int]] = self.masks.metainfo['palette']
        guide = self.critic if self.guidance is not None and isinstance(self.critic, Mapping) else None
        fixed, judge = ((self.filter or {}).get(name) for name in ('class_losses', 'segmentor'))
        self.pool: dict[str, Any] = dict(
            online=True,
            generator=dict(
                type=MODELS.get(self.cfg.model['type']).__name__, config_sha256=config_hash(self.cfg.model),
                weights_sha256=file_hash(self.checkpoint)),
            seed=seed,
            num_per_round=num_per_round,
            masks_sha256=config_and_files_hash(masks),
            guidance=self.guidance,
            critic=self.critic if self.needs_segmentor or guide else None,
            critic_weights_sha256=None if guide is None else critic_hashes(guide),
            filter=self.filter,
            filter_sha256=None if fixed is None else file_hash(fixed),
            filter_weights_sha256=None if judge is None else critic_hashes(judge))

    @property
    def needs_segmentor(self) -> bool:
        """Whether a request must hold the segmentor in training."""
        guided = self.guidance is not None and isinstance(self.critic, str)
        filtered = self.filter is not None and self.filter.get('segmentor') is None
        return guided or filtered or self.masks.live


class RoundMasks:
    """The masks of a run's rounds: a seeded walk through a data set, one shuffled epoch after another.

    A mask source that asks a critic, such as ``mmsynth.UncertainMasks``, may have ``critic='runner'`` or 'ema': it is
    built anew for every round and asks the segmentor as it is then.

    Args:
        cfg: Config of a data set of masks, plain dicts and lists.
        num_per_round: Masks per round.
        seed: The run's.

    Attributes:
        live: Whether the masks of a round depend on the segmentor in training.

    Raises:
        ValueError: If the data set is empty.
    """

    def __init__(self, cfg: Mapping[str, Any], num_per_round: int, seed: int) -> None:
        self._cfg, self.num_per_round, self.seed = cfg, num_per_round, seed
        fixed = without_live_critics(cfg)
        self.live = fixed != cfg
        self._dataset = build_dataset(fixed)
        if not len(self._dataset):
            raise ValueError('`masks`: the data set is empty, so there is nothing to generate images for.')

    @property
    def metainfo(self) -> dict[str, Any]:
        return self._dataset.metainfo

    def dataset(self, segmentor: nn.Module | None) -> Any:
        """The data set of a round, by the segmentor as it is now."""
        if not self.live:
            return self._dataset
        return build_dataset(with_critic(self._cfg, SegmentorCritic(segmentor=segmentor)))

    def requests(self, round: int, size: int) -> list[Request]:
        """What a round generates of a data set of ``size`` masks: a function of the seed, the round and the size.

        Every epoch of masks has an order of its own; a mask's repeat is the number of the epoch.
        """
        requests, orders = [], {}
        for place in range(self.num_per_round):
            number = round * self.num_per_round + place
            epoch, position = divmod(number, size)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng(derive_seed(self.seed, 'masks', epoch)).permutation(size)
            requests.append(Request(f'{number:08d}', int(orders[epoch][position]), derive_seed(self.seed, round, place),
                                    repeat=epoch))
        return requests


def filter_problems(options: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the options of a :class:`~mmsynth.online.synthesizer.RoundFilter`."""
    wrong = []
    unknown = sorted(options.keys() - {*ROUND_FILTER_OPTIONS, *RULE_OPTIONS})
    if unknown:
        wrong.append(f'`filter` does not know {", ".join(unknown)}; it takes '
                     f'{", ".join((*ROUND_FILTER_OPTIONS, *RULE_OPTIONS))}')
    if options.get('sibling_vote') is not None:
        wrong.append('`filter.sibling_vote` needs several images of one mask at once, and a round has one of each; '
                     'leave it out')
    if 'class_losses' in options and 'num_images' in options:
        wrong.append('`filter.num_images` has no effect beside `filter.class_losses`; leave one of them out')
    if options.get('num_images', 1) < 1:
        wrong.append(f'`filter.num_images` must be at least 1, got {options["num_images"]}')
    return wrong


def _as_dict(option: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if option is None else ConfigDict(option).to_dict()


def _check_options(generator: Mapping[str, Any], guidance: Mapping[str, Any] | None,
                   critic: str | Mapping[str, Any] | None, filter: Mapping[str, Any] | None,
                   num_per_round: int) -> None:
    """Raise ValueError if options are out of range or without effect; all such are named at once."""
    wrong = [] if num_per_round >= 1 else [f'`num_per_round` must be at least 1, got {num_per_round}']
    if set(generator) != {'config', 'checkpoint'}:
        wrong.append(f'`generator` must be dict(config=…, checkpoint=…), got the keys {sorted(generator)}')
    if isinstance(critic, str) and critic not in LIVE:
        wrong.append(f"`critic` must be 'runner', 'ema', the config of a critic, or None, got {critic!r}")
    if guidance is not None and 'critic' in guidance:
        wrong.append('`guidance.critic` has its own place here: give it as `critic`')
    if guidance is not None and critic is None:
        wrong.append("`guidance` needs a `critic`: 'runner', 'ema', or the config of one")
    if guidance is None and isinstance(critic, Mapping):
        wrong.append('`critic` has no effect without `guidance`')
    if filter is not None:
        wrong += filter_problems(filter)
    if wrong:
        raise ValueError(f'online synthesis: {"; ".join(wrong)}.')
