"""What a guidance ablation compares: rules, how many steps each guides, and the trained parts that it runs on."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from mmengine.runner import find_latest_checkpoint

Steps = int | Literal['all']

# The settings of each rule beside its critic and its steps. 'clamp' and 'gradient' are the two halves of 'released'.
RULES: Mapping[str, Mapping[str, Any] | None] = MappingProxyType({
    'none': None,
    'clamp': dict(type='mmsynth.CRFM', norm='raw', step_size=0.0, legacy=True),
    'gradient': dict(type='mmsynth.CRFM', norm='raw', step_size=0.1, policy='decrease', trust_region=None),
    'released': dict(type='mmsynth.CRFM', norm='raw', step_size=0.1, policy='decrease', legacy=True),
    'relative': dict(type='mmsynth.CRFM', norm='relative', step_size=0.1, policy='constant'),
    'relative-0.3': dict(type='mmsynth.CRFM', norm='relative', step_size=0.3, policy='constant'),
    'best-of-n': dict(type='mmsynth.BestOfN', num_candidates=4),
})
RULE_TITLES: Mapping[str, str] = MappingProxyType({
    'none': 'none',
    'clamp': 'clamp only',
    'gradient': 'gradient only',
    'released': 'released',
    'relative': 'relative',
    'relative-0.3': 'relative 0.3',
    'best-of-n': 'best of 4',
})
WITHOUT_STEPS = ('none', 'best-of-n')


@dataclass(frozen=True)
class Variant:
    """One way to sample.

    Attributes:
        rule: A key of :data:`RULES`.
        steps: Steps guided, from the first on; None for a rule that has none.
    """

    rule: str
    steps: Steps | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return self.rule if self.steps is None else f'{self.rule}-{self.steps}'

    @property
    def settings(self) -> dict[str, Any] | None:
        """The config of its guidance, without a critic."""
        settings = RULES[self.rule]
        return settings and dict(settings) | ({} if self.steps is None else dict(steps=self.steps))


@dataclass(frozen=True)
class AblationOptions:
    """What is measured, and on how much.

    Attributes:
        rules: Keys of :data:`RULES`. 'none' is measured in any case: every gain is over it.
        steps: Steps guided: numbers or 'all'. At 0 a rule is 'none' and is not sampled again.
        limit: Use only so many masks, the first.
        batch_size: Images generated together; None for the config's, or 4. The released rule averages the critic's loss
            over the batch, so its images depend on it.
        num_real: Real images that the synthetic ones are compared with; the training set is gone through evenly.
        device: Where everything runs.

    Raises:
        ValueError: If an option is out of range or there is no such rule.
    """

    rules: Sequence[str] = tuple(RULES)
    steps: Sequence[Steps] = (0, 2, 4, 6, 'all')
    limit: int | None = None
    batch_size: int | None = None
    num_real: int = 1000
    device: torch.device | str = 'cpu'

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise ValueError(f'`rules` must be of {", ".join(RULES)}, got {unknown[0]!r}.')
        wrong = [steps for steps in self.steps if steps != 'all' and (isinstance(steps, str) or steps < 0)]
        if wrong or not self.steps:
            raise ValueError(f"`steps` must hold numbers of at least 0 or 'all', got {wrong[0] if wrong else ()!r}.")
        for name, least, why in (('limit', 2, ', which a Fréchet distance needs'), ('batch_size', 1, ''),
                                 ('num_real', 2, ', which a Fréchet distance needs')):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f'`{name}` must be at least {least}{why}, got {value}.')

    @property
    def variants(self) -> list[Variant]:
        """All that is measured, 'none' first, in the order of :data:`RULES`."""
        chosen = [rule for rule in RULES if rule == 'none' or rule in self.rules]
        guided = [steps for steps in dict.fromkeys(self.steps) if steps != 0]
        return [Variant(rule, steps) for rule in chosen
                for steps in ((None, ) if rule in WITHOUT_STEPS else guided)]


@dataclass(frozen=True)
class TrainedParts:
    """Trained networks, and the seeds that they are sampled under.

    Attributes:
        seeds: Of the noise; each the same for all variants.
        config: Of the generator, with ``synthesis``.
        checkpoint: The generator's weights.
        judge_config: Of the segmentor that judges; it must not be the one that guides.
        judge_checkpoint: The judge's weights.
    """

    seeds: tuple[int, ...]
    config: Path
    checkpoint: Path
    judge_config: Path
    judge_checkpoint: Path


def demo_parts(demo_dir: str | Path, seeds: Sequence[int] | None = None) -> list[TrainedParts]:
    """What ``projects/demo`` trained: a generator, a critic and a judge for each of its seeds.

    Args:
        demo_dir: Its ``--out-dir``.
        seeds: Those to take; None for all that are there.

    Raises:
        ValueError: If there is none, or one that is asked for is not there.
        FileNotFoundError: If one was not trained to its end.
    """
    demo_dir = Path(demo_dir)
    there = sorted(int(name) for path in demo_dir.glob('seed_*') if (name := path.name[len('seed_'):]).isdigit())
    if not there:
        raise ValueError(f'{demo_dir} holds no seed_N; give the --out-dir of a run of projects/demo.')
    missing = [seed for seed in seeds or () if seed not in there]
    if missing:
        raise ValueError(f'`seeds`: {demo_dir} holds {", ".join(map(str, there))}, got {missing[0]}; run projects/demo '
                         f'with it first.')
    return [_seed_parts(demo_dir / f'seed_{seed}', seed) for seed in (there if seeds is None else seeds)]


def _seed_parts(folder: Path, seed: int) -> TrainedParts:
    return TrainedParts(
        (seed, ),
        config=folder / 'configs' / 'generator.py',
        checkpoint=_last_checkpoint(folder / 'generator'),
        judge_config=folder / 'configs' / 'judge.py',
        judge_checkpoint=_last_checkpoint(folder / 'judge'))


def _last_checkpoint(folder: Path) -> Path:
    found = find_latest_checkpoint(folder)
    if found is None:
        raise FileNotFoundError(f'{folder} has no checkpoint: this part was not trained to its end. Run projects/demo '
                                'again.')
    return folder / Path(found).name  # also where the folder was moved
