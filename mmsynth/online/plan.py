"""What an online run paints: its options, held against each other before anything heavy is built."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmsynth.online.masks import LIVE, RoundMasks, plain
from mmsynth.online.round_filter import check_filter
from mmsynth.registry import MODELS
from mmsynth.synthesis import load_config
from mmsynth.synthesis.build import critic_hashes
from mmsynth.utils.hashes import config_and_files_hash, config_hash, file_hash


class RefreshPlan:
    """The options of a refresh that decide what a sample looks like.

    Args:
        generator: ``config`` (path, or dict of a config with the generator as ``model``) and ``checkpoint``.
        masks: Config of the data set whose masks are painted; None for ``synthesis.dataset`` of the generator's config.
            A mask source that asks a critic, such as ``mmsynth.UncertainMasks``, may ask 'runner' or 'ema'.
        guidance: Config of a guidance without its ``critic``; None for none.
        critic: Who guides, and who filters unless the filter has a segmentor of its own: 'runner' or 'ema', the
            segmentor in training or its average; the config of a frozen critic, who only guides; or None.
        filter: Options of a :class:`~mmsynth.online.round_filter.RoundFilter`; None for no filter.
        num_per_round: Masks painted per round.
        seed: The run's.

    Attributes:
        settings: All that decides what a sample looks like, but for the segmentor's weights: for the pool's header.
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
        check_plan(generator, guidance, critic, filter, num_per_round)
        self.cfg = _load(generator['config'])
        self.checkpoint: str = str(generator['checkpoint'])
        if not Path(self.checkpoint).exists():
            raise FileNotFoundError(f'`generator.checkpoint` {self.checkpoint} does not exist; train the generator '
                                    'first (tools/train.py).')
        self.guidance = None if guidance is None else plain(guidance)
        self.critic = plain(critic)
        self.filter = None if filter is None else plain(filter)
        self.seed = seed
        masks = masks or (self.cfg.get('synthesis') or {}).get('dataset')
        if masks is None:
            raise ValueError('`masks` is not given, and the config of the generator has no `synthesis.dataset`; name '
                             'the data set whose masks are painted.')
        self.masks = RoundMasks(masks, num_per_round, seed)
        self.classes: Sequence[str] = self.masks.metainfo['classes']
        self.palette: Sequence[Sequence[int]] = self.masks.metainfo['palette']
        self.settings = self._describe(plain(masks))

    @property
    def needs_segmentor(self) -> bool:
        """Whether an order must bring the segmentor in training."""
        guided = self.guidance is not None and isinstance(self.critic, str)
        filtered = self.filter is not None and self.filter.get('segmentor') is None
        return guided or filtered or self.masks.live

    def _describe(self, masks: Mapping[str, Any]) -> dict[str, Any]:
        fixed = (self.filter or {}).get('class_losses')
        reader = (self.filter or {}).get('segmentor')
        guide = self.critic if self.guidance is not None and isinstance(self.critic, Mapping) else None
        return dict(
            online=True,
            generator=dict(
                type=MODELS.get(self.cfg.model['type']).__name__, config_sha256=config_hash(self.cfg.model),
                weights_sha256=file_hash(self.checkpoint)),
            seed=self.seed,
            num_per_round=self.masks.num_per_round,
            masks_sha256=config_and_files_hash(masks),
            guidance=self.guidance,
            critic=self.critic if self.needs_segmentor or guide else None,
            critic_weights_sha256=None if guide is None else critic_hashes(guide),
            filter=self.filter,
            filter_sha256=None if fixed is None else file_hash(fixed),
            filter_weights_sha256=None if reader is None else critic_hashes(reader))


def check_plan(generator: Mapping[str, Any], guidance: Mapping[str, Any] | None,
               critic: str | Mapping[str, Any] | None, filter: Mapping[str, Any] | None, num_per_round: int) -> None:
    """Raise ValueError if options of a refresh are out of range or without effect; all such are named at once."""
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
        wrong += check_filter(filter)
    if wrong:
        raise ValueError(f'online synthesis: {"; ".join(wrong)}.')


def _load(config: str | Mapping[str, Any]) -> Config:
    if isinstance(config, Mapping):
        import mmseg.datasets
        import mmseg.models  # noqa: F401  (they fill mmseg's registries)
        return Config(plain(config))
    return load_config(config)
