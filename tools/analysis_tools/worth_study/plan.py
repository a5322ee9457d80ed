"""What a study compares: pools of synthetic images, and rows, the segmentors that train with or without them.

All of it is config lines; ``generator='todsynth_long.py'`` and ``critic='critic.py'`` do where there is one of each::

    worth = dict(
        generators=dict(
            plain='todsynth_long.py',
            dropout=dict(config='todsynth_long.py', overrides={'model.mask_dropout': 0.15})),
        critics=dict(fcn='critic.py', unet='segmentor_unet.py', both=dict(critics=('fcn', 'unet'))),
        segmentors=dict(fcn='critic.py', unet='segmentor_unet.py'),
        pools=dict(
            plain=dict(),
            crfm=dict(guidance=dict(type='mmsynth.CRFM'), critic='both'),
            towards_mask=dict(generator='dropout', sampling=dict(mask_guidance_scale=1.5))),
        rows=dict(real=dict(), twice=dict(iterations=2), plain=dict(pool='plain'), crfm=dict(pool='crfm')))
"""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.registry import Registry

from mmsynth.engine.hooks import OnlineSynthesisHook
from mmsynth.filtering import ClassLossFilter
from mmsynth.registry import DATASETS, MODELS
from mmsynth.synthesis.build import load_config
from mmsynth.synthesis.live_critics import LIVE
from mmsynth.utils.configs import find_config

SAMPLING = ('num_steps', 'sampler', 'guidance_scale', 'guidance_interval', 'mask_guidance_scale',
            'mask_guidance_interval', 'reference_guidance_scale', 'reference_guidance_interval')
ENSEMBLE, REDUCIBLE = 'mmsynth.CriticEnsemble', 'mmsynth.ReducibleLossCritic'
OF_THE_POOL = ('pool', 'generator', 'masks', 'guidance', 'filter', 'seed')  # what a row's `online` does not repeat


@dataclass(frozen=True)
class GeneratorPlan:
    """A generator's training; it serves all pools that name it.

    Args:
        config: Config file.
        overrides: Values by dotted key, as by ``--cfg-options``.
        unlabelled: Exact share of unlabelled images in every batch, in [0, 1); they have the null mask. Rows that need
            it are left out where all images are labelled.
    """

    config: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: float = 0.0


@dataclass(frozen=True)
class CriticPlan:
    """A segmentor that guides, filters or chooses masks, or one made of several; exactly one of the first two.

    Args:
        config: Config file of a segmentor, trained on the labelled images.
        critics: Names of the critics of a :class:`~mmsynth.guidance.CriticEnsemble`, or of the ``type``.
        type: Registered class that takes them: 'mmsynth.CriticEnsemble', or 'mmsynth.ReducibleLossCritic', whose
            teacher comes first, its learner second.
        looks: Views of an image that it looks at, see :class:`~mmsynth.guidance.AugmentedCritic`.
        learning_rate: A multiple of the config's.
        cross_fitted: Train one critic for each labelled place, on the images of all others, to guide the images for
            masks of that place: a critic that has not seen them.
    """

    config: str | None = None
    critics: Sequence[str] = ()
    type: str = ENSEMBLE
    looks: int = 1
    learning_rate: float = 1.0
    cross_fitted: bool = False


@dataclass(frozen=True)
class PoolPlan:
    """Synthetic images of one kind. Pools of one case share masks and noise; one that differs in its filter alone from
    another takes that one's images.

    Args:
        generator: Name of the generator; the first by default.
        sampling: Settings of the generator's model that act in sampling alone, such as ``mask_guidance_scale``.
        guidance: Config of a guidance without its critic; None for none. In its ``objective`` 'critic' stands for the
            critic's class losses on the labelled images.
        critic: Name of the critic that guides; the first by default.
        latent_critic: Let a :class:`~mmsynth.guidance.LatentCritic` guide in its place, distilled from it for the
            generator.
        masks: Config of a mask source. Where it has no ``dataset`` it gets the case's masks, tiles of the labelled
            ones; a ``critic`` in it is a critic's name. None for the tiles themselves.
        num_per_mask: Images per mask.
        filter: Options of a :class:`~mmsynth.filtering.ClassLossFilter`, whose ``segmentor`` is the name of a critic,
            the pool's by default; None for no filter. With ``mode='soft'`` rows train on its weights.
    """

    generator: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    guidance: Mapping[str, Any] | None = None
    critic: str | None = None
    latent_critic: bool = False
    masks: Mapping[str, Any] | None = None
    num_per_mask: int = 1
    filter: Mapping[str, Any] | None = None

    @property
    def asks_class_losses(self) -> bool:
        """Whether the guidance's objective needs the critic's class losses."""
        objective = (self.guidance or {}).get('objective')
        return isinstance(objective, Mapping) and 'critic' in objective.values()

    @property
    def is_weighted(self) -> bool:
        """Whether its pixels have weights to train with."""
        return (self.filter or {}).get('mode') == 'soft'


@dataclass(frozen=True)
class RowPlan:
    """A segmentor's training.

    Args:
        pool: Name of the pool that is mixed in; None for none.
        ratio: Exact share of synthetic (or pseudo-labelled) images in a batch, in (0, 1).
        mixed: Share of the training, from its start, in which they are mixed in, in (0, 1]; the rest trains on the
            labelled images alone.
        iterations: Length of the training as a multiple of the others'.
        learning_rate: A multiple of the config's. A rate that does not suit real images alone makes any addition look
            good: give them several.
        transforms: Transforms put in before the pipeline's last, such as a strong augmentation.
        online: Generate what ``pool`` describes while the segmentor trains: options of an
            :class:`~mmsynth.engine.hooks.OnlineSynthesisHook` that say when and how many. Its ``critic`` is 'runner',
            the default, 'ema' or a critic's name.
        self_training: Mix in the unlabelled images in the place of synthetic ones, with what the segmentor of the best
            row of real images (on the inner validation part) reads in them. Left out where all images are labelled.
        confidence: Pixels that it reads with a lower probability are ignored, in [0, 1).
        title: In tables; the row's name by default.
    """

    pool: str | None = None
    ratio: float = 0.5
    mixed: float = 1.0
    iterations: float = 1.0
    learning_rate: float = 1.0
    transforms: Sequence[Mapping[str, Any]] = ()
    online: Mapping[str, Any] | None = None
    self_training: bool = False
    confidence: float = 0.9
    title: str | None = None

    @property
    def is_real(self) -> bool:
        """Whether it trains on the labelled images alone."""
        return self.pool is None and not self.self_training


@dataclass(frozen=True)
class Study:
    """A whole study.

    Args:
        generators: Name → config file, or options of a :class:`GeneratorPlan`.
        critics: Name → config file, or options of a :class:`CriticPlan`.
        segmentors: Name → config file of the architectures that are trained on each row.
        judges: Name → config file of segmentors that read the pools and guide none: trained twice as long as others, on
            the labelled images and those of the inner validation and the test part.
        pools: Name → options of a :class:`PoolPlan`.
        rows: Name → options of a :class:`RowPlan`.
        shares: Shares of the training images that are labelled, in (0, 1].
        baseline: Rows of real images only; the best of them (on the inner validation part) is what others are held
            against. All such rows by default.
        plain: Row of plain synthetic images, which others are held against as well; by default the one that is called
            'plain', if there is one.
        trainings: How often every row's segmentor is trained, each time with another seed of its initial weights and
            batches; its hits are those of all of them. One training alone scatters by a point and more.
        downscale, tile_size, piece_size, num_masks: How images are cut, see :func:`worth_study.data.write_case`.
        generator_iters, segmentor_iters: Lengths of the trainings; None for the configs' own.

    Raises:
        ValueError: If an option is unknown or out of range, or names what there is not; all such are named at once.
    """

    generators: Mapping[str, GeneratorPlan]
    critics: Mapping[str, CriticPlan]
    segmentors: Mapping[str, str]
    pools: Mapping[str, PoolPlan]
    rows: Mapping[str, RowPlan]
    judges: Mapping[str, str] = field(default_factory=dict)
    shares: Sequence[float] = (1.0, )
    baseline: Sequence[str] = ()
    plain: str | None = None
    trainings: int = 1
    downscale: int = 4
    tile_size: int = 48
    piece_size: int = 96
    num_masks: int = 160
    generator_iters: int | None = None
    segmentor_iters: int | None = None

    def __post_init__(self) -> None:
        problems = [f'`shares` must be in (0, 1], got {share}' for share in self.shares if not 0 < share <= 1]
        if self.trainings < 1:
            problems.append(f'`trainings` must be at least 1, got {self.trainings}')
        if not self.segmentors:
            problems.append('`segmentors` must hold at least one')
        problems += [f'`generators.{name}.unlabelled` must be in [0, 1), got {plan.unlabelled}'
                     for name, plan in self.generators.items() if not 0 <= plan.unlabelled < 1]
        for find, plans in ((_critic_problems, self.critics), (_pool_problems, self.pools), (_row_problems, self.rows)):
            for name, plan in plans.items():
                problems += find(self, name, plan)
        wrong = [name for name in self.baseline if name not in self.rows or not self.rows[name].is_real]
        if wrong or not self.baseline:
            problems.append(f'`baseline` must name rows without synthetic images, got {", ".join(wrong) or "none"}')
        if self.plain is not None and self.plain not in self.rows:
            problems.append(f'`plain` must be one of {", ".join(self.rows)}, got {self.plain!r}')
        if problems:
            raise ValueError(f'worth: {"; ".join(problems)}.')

    @classmethod
    def read(cls, path: str | Path, overrides: Mapping[str, Any] | None = None,
             rows: Sequence[str] | None = None) -> 'Study':
        """Read ``worth`` from a config file; config files that it names are relative to that file, or are found as
        :func:`~mmsynth.utils.configs.find_config` finds them.

        Args:
            path: The file.
            overrides: Values by dotted key.
            rows: Names of the rows to keep; None for all.

        Raises:
            ValueError: If the config has no ``worth``, or it is wrong, or has no row of such a name.
            FileNotFoundError: If a config file does not exist.
        """
        settings = load_config(path, overrides).get('worth')
        if settings is None:
            raise ValueError(f'{path}: it has no `worth`; see projects/demo/configs/worth.py.')
        settings = settings.to_dict()
        for group in ('generators', 'critics', 'segmentors', 'judges', 'pools', 'rows'):
            if not isinstance(settings.get(group, {}), dict):
                raise ValueError(f'{path}: `worth.{group}` must be a dict by name, got {settings[group]!r}; set it in '
                                 f'a config file, where `{group}=dict(_delete_=True)` stands for none.')
        if rows is not None:
            known = settings.get('rows', {})
            for name in rows:
                for problem in _problem_of_name('--rows', name, known):
                    raise ValueError(f'{path}: {problem}.')
            settings['rows'] = {name: row for name, row in known.items() if name in rows}
        for one, several in (('generator', 'generators'), ('critic', 'critics')):
            if one in settings and several in settings:
                raise ValueError(f'{path}: `{one}` and `{several}` say the same; keep one of them.')
            if one in settings:
                settings[several] = {one: settings.pop(one)}
            settings[several] = {name: dict(config=plan) if isinstance(plan, str) else plan
                                 for name, plan in settings.get(several, {}).items()}
        plans = {group: {name: _build(kind, f'{group}.{name}', plan) for name, plan in settings.get(group, {}).items()}
                 for group, kind in (('generators', GeneratorPlan), ('critics', CriticPlan), ('pools', PoolPlan),
                                     ('rows', RowPlan))}
        for group in ('generators', 'critics'):
            plans[group] = {name: plan if plan.config is None else replace(plan, config=_find(path, plan.config))
                            for name, plan in plans[group].items()}
        plans['pools'] = {name: replace(plan, generator=plan.generator or next(iter(plans['generators']), None),
                                        critic=plan.critic or next(iter(plans['critics']), None))
                          for name, plan in plans['pools'].items()}
        for group in ('segmentors', 'judges'):
            plans[group] = {name: _find(path, file) for name, file in settings.get(group, {}).items()}
        settings.setdefault('baseline', tuple(name for name, row in plans['rows'].items() if row.is_real))
        settings.setdefault('plain', 'plain' if 'plain' in plans['rows'] else None)
        return _build(cls, 'worth', settings | plans)

    def is_cross_fitted(self, critic: str) -> bool:
        """Whether a critic, or one of an ensemble's, differs by the place of the masks."""
        names = {critic, *self.critics[critic].critics} & self.critics.keys()
        return any(self.critics[name].cross_fitted for name in names)

    def rows_and_pools(self, unlabelled: bool) -> tuple[list[str], list[str]]:
        """The rows that take part where some images are not labelled, or where all are; and their pools, for judges."""
        ask_for_them = {pool for pool, plan in self.pools.items() if self.generators[plan.generator].unlabelled > 0}
        rows = {name: row for name, row in self.rows.items()
                if unlabelled or not (row.self_training or row.pool in ask_for_them)}
        return list(rows), list(dict.fromkeys(
            row.pool for row in rows.values() if row.pool is not None and row.online is None))

    def unfiltered(self, pool: str) -> str | None:
        """The pool that has the images of a filtered one, if there is one."""
        plan = self.pools[pool]
        images = replace(plan, filter=None)
        return None if plan.filter is None else next((name for name, own in self.pools.items() if own == images), None)


def _critic_problems(study: Study, name: str, plan: CriticPlan) -> Iterator[str]:
    if (plan.config is None) == (not plan.critics):
        yield f'`critics.{name}` must have exactly one of `config` and `critics`'
    if plan.critics and (plan.cross_fitted or plan.learning_rate != 1):
        yield f'`critics.{name}` has no training: `cross_fitted` and `learning_rate` are options of its `critics`'
    if plan.learning_rate <= 0:
        yield f'`critics.{name}.learning_rate` must be above 0, got {plan.learning_rate}'
    single = [critic for critic, other in study.critics.items() if not other.critics]
    wrong = [member for member in plan.critics if member not in single]
    if plan.type not in (ENSEMBLE, REDUCIBLE) or plan.type == REDUCIBLE and len(plan.critics) != 2 or plan.looks < 1:
        yield (f'`critics.{name}` must have `type` {ENSEMBLE}, or {REDUCIBLE} with two `critics`, and `looks` of at '
               f'least 1, got {plan.type}, {len(plan.critics)} critics and {plan.looks} looks')
    if wrong:
        yield f'`critics.{name}.critics` must be of {", ".join(single) or "(none)"}, got {", ".join(wrong)}'


def _pool_problems(study: Study, name: str, plan: PoolPlan) -> Iterator[str]:
    where = f'pools.{name}'
    yield from _problem_of_name(f'{where}.generator', plan.generator, study.generators)
    yield from _unknown(f'{where}.sampling', plan.sampling, SAMPLING)
    if plan.num_per_mask < 1:
        yield f'`{where}.num_per_mask` must be at least 1, got {plan.num_per_mask}'
    if plan.guidance is not None:
        yield from _problem_of_name(f'{where}.critic', plan.critic, study.critics)
        yield from _problems_of_part(f'{where}.guidance', plan.guidance, MODELS, given=('critic', ))
        if plan.asks_class_losses and not study.critics.get(plan.critic, CriticPlan('')).config:
            yield f"`{where}.guidance.objective` asks for the class losses of 'critic', which must be one segmentor"
    if plan.latent_critic and (plan.guidance is None or not study.critics.get(plan.critic, CriticPlan('')).config
                               or study.is_cross_fitted(plan.critic)):
        yield f'`{where}.latent_critic` needs a `guidance`, and one segmentor as its `critic`'
    critics = [critic for critic in study.critics if not study.is_cross_fitted(critic)]
    masks, place = plan.masks, f'{where}.masks'
    while masks is not None:
        yield from _problems_of_part(place, masks, DATASETS)
        if 'critic' in masks:
            yield from _problem_of_name(f'{place}.critic', masks['critic'], (*critics, *LIVE))
        masks, place = masks.get('dataset'), f'{place}.dataset'
    if plan.filter is not None:
        yield from _unknown(f'{where}.filter', plan.filter, _options(ClassLossFilter, ('class_losses', )))
        single = [critic for critic in critics if not study.critics[critic].critics]
        yield from _problem_of_name(f'{where}.filter.segmentor', plan.filter.get('segmentor', plan.critic), single)
        if plan.filter.get('sibling_vote') and plan.num_per_mask == 1:
            yield f'`{where}.filter.sibling_vote` has no effect with one image per mask; raise `num_per_mask`'


def _row_problems(study: Study, name: str, row: RowPlan) -> Iterator[str]:
    where = f'rows.{name}'
    if row.pool is not None:
        yield from _problem_of_name(f'{where}.pool', row.pool, study.pools)
    if not 0 < row.ratio < 1 or not 0 < row.mixed <= 1 or not 0 <= row.confidence < 1:
        yield (f'`{where}` must have `ratio` in (0, 1), `mixed` in (0, 1] and `confidence` in [0, 1), got {row.ratio}, '
               f'{row.mixed} and {row.confidence}')
    if row.iterations <= 0 or row.learning_rate <= 0:
        yield (f'`{where}` must have `iterations` and `learning_rate` above 0, got {row.iterations} and '
               f'{row.learning_rate}')
    if row.self_training and row.pool is not None:
        yield f'`{where}.self_training` takes the place of `pool`; make two rows'
    if row.online is None:
        if row.pool in study.pools and _asks_live(study.pools[row.pool].masks):
            yield f'`pools.{row.pool}.masks` asks the segmentor in training, which only rows with `online` have'
        return
    if row.pool is None:
        yield f'`{where}.online` needs `pool`, which describes what is generated'
    yield from _unknown(f'{where}.online', row.online, _options(OnlineSynthesisHook, OF_THE_POOL))
    yield from _problem_of_name(f'{where}.online.critic', row.online.get('critic', LIVE[0]), (*LIVE, *study.critics))


def _asks_live(masks: Mapping[str, Any] | None) -> bool:
    return masks is not None and (masks.get('critic') in LIVE or _asks_live(masks.get('dataset')))


def _problems_of_part(where: str, part: Mapping[str, Any], registry: Registry,
                      given: Sequence[str] = ()) -> Iterator[str]:
    """What is wrong with the ``type`` of a part and the names of its options, of which some are given by the study."""
    kind = registry.get(str(part.get('type')))
    if kind is None:
        yield f"`{where}.type` must be a registered name such as 'mmsynth.CRFM', got {part.get('type')!r}"
    else:
        yield from _unknown(where, part, ('type', *_options(kind, given)))


def _problem_of_name(where: str, name: str | None, known: Sequence[str] | Mapping[str, Any]) -> Iterator[str]:
    if name not in known:
        yield f'`{where}` must be one of {", ".join(known) or "(none)"}, got {name!r}'


def _options(kind: type, given: Sequence[str] = ()) -> list[str]:
    return [name for name in signature(kind).parameters if name not in given]


def _unknown(where: str, options: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    wrong = sorted(options.keys() - set(known))
    if wrong:
        yield f'`{where}` does not know {", ".join(wrong)}; it takes {", ".join(known)}'


def _find(study: str | Path, path: str) -> str:
    beside = Path(study).parent / path
    return str(beside if beside.is_file() else find_config(path))


def _build(kind: type, where: str, options: Mapping[str, Any]) -> Any:
    for problem in _unknown(where, options, _options(kind)):
        raise ValueError(f'worth: {problem}.')
    try:
        return kind(**options)
    except TypeError as error:  # one that has no default is missing
        raise ValueError(f'worth: `{where}`: {error}.') from error
