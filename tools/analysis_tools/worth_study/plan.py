"""What a study compares: pools of synthetic images, and rows, the segmentors that train with or without them.

All of it is config lines::

    worth = dict(
        generator='todsynth_long.py', critic='critic.py', segmentors=dict(fcn='critic.py', unet='segmentor_unet.py'),
        pools=dict(plain=dict(), crfm=dict(guidance=dict(type='mmsynth.CRFM'))),
        rows=dict(real=dict(), twice=dict(iterations=2), plain=dict(pool='plain'), crfm=dict(pool='crfm')))
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmengine.config import Config


@dataclass(frozen=True)
class PoolPlan:
    """Synthetic images of one kind; all pools of a case are made by one generator from the same masks and noise.

    Args:
        guidance: Config of a guidance without its critic; None for none.
        num_per_mask: Images per mask.
        filter: Options of a :class:`~mmsynth.filtering.ClassLossFilter` whose segmentor is the critic; None for none.
    """

    guidance: Mapping[str, Any] | None = None
    num_per_mask: int = 1
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RowPlan:
    """A segmentor's training.

    Args:
        pool: Name of the pool that is mixed in; None for real images only.
        ratio: Exact share of synthetic images in a batch, in (0, 1).
        iterations: Length of the training as a multiple of the others'.
        transforms: Transforms put in before the pipeline's last, such as a strong augmentation.
        title: In tables; the row's name by default.
    """

    pool: str | None = None
    ratio: float = 0.5
    iterations: float = 1.0
    transforms: Sequence[Mapping[str, Any]] = ()
    title: str | None = None


@dataclass(frozen=True)
class Study:
    """A whole study.

    Args:
        generator, critic: Config files of the generator and of the segmentor that guides and filters.
        segmentors: Name → config file of the architectures that are trained on each row.
        pools: Name → options of a :class:`PoolPlan`.
        rows: Name → options of a :class:`RowPlan`.
        shares: Shares of the training images that are labelled, in (0, 1].
        baseline: Rows of real images only; the best of them (on the inner validation part) is what others are held
            against.
        downscale, tile_size, piece_size, num_masks: How images are cut, see :func:`worth_study.data.write_case`.
        generator_iters, segmentor_iters: Lengths of the trainings; None for the configs' own.

    Raises:
        ValueError: If an option is unknown or out of range, or a row names a pool that there is not.
    """

    generator: str
    critic: str
    segmentors: Mapping[str, str]
    pools: Mapping[str, PoolPlan]
    rows: Mapping[str, RowPlan]
    shares: Sequence[float] = (1.0, )
    baseline: Sequence[str] = field(default_factory=tuple)
    downscale: int = 4
    tile_size: int = 48
    piece_size: int = 96
    num_masks: int = 160
    generator_iters: int | None = None
    segmentor_iters: int | None = None

    def __post_init__(self) -> None:
        problems = [f'`shares` must be in (0, 1], got {share}' for share in self.shares if not 0 < share <= 1]
        for name, row in self.rows.items():
            if row.pool is not None and row.pool not in self.pools:
                problems.append(f'`rows.{name}.pool` must be one of {", ".join(self.pools) or "(no pools)"}, got '
                                f'{row.pool!r}')
            if not 0 < row.ratio < 1 or row.iterations <= 0:
                problems.append(f'`rows.{name}` must have `ratio` in (0, 1) and `iterations` above 0, got {row.ratio} '
                                f'and {row.iterations}')
        wrong = [name for name in self.baseline if name not in self.rows or self.rows[name].pool is not None]
        if wrong or not self.baseline:
            problems.append(f'`baseline` must name rows without a pool, got {", ".join(wrong) or "none"}')
        if problems:
            raise ValueError(f'worth: {"; ".join(problems)}.')

    @classmethod
    def read(cls, path: str | Path) -> 'Study':
        """Read ``worth`` from a config file; file names in it are relative to that file.

        Raises:
            ValueError: If the config has no ``worth``, or it is wrong.
        """
        path = Path(path)
        settings = Config.fromfile(path).get('worth')
        if settings is None:
            raise ValueError(f'{path}: it has no `worth`; see projects/demo/configs/worth.py.')
        settings = settings.to_dict()
        unknown = settings.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f'{path}: `worth` does not know {", ".join(sorted(unknown))}; it takes '
                             f'{", ".join(item.name for item in fields(cls))}.')
        rows = {name: _build(RowPlan, f'rows.{name}', row) for name, row in settings.get('rows', {}).items()}
        settings.setdefault('baseline', tuple(name for name, row in rows.items() if row.pool is None))
        return cls(**settings | dict(
            generator=str(path.parent / settings['generator']),
            critic=str(path.parent / settings['critic']),
            segmentors={name: str(path.parent / file) for name, file in settings['segmentors'].items()},
            pools={name: _build(PoolPlan, f'pools.{name}', pool) for name, pool in settings.get('pools', {}).items()},
            rows=rows))


def _build(kind: type, name: str, options: Mapping[str, Any]) -> Any:
    known = [item.name for item in fields(kind)]
    if options.keys() - set(known):
        raise ValueError(f'worth: `{name}` does not know {", ".join(sorted(options.keys() - set(known)))}; it takes '
                         f'{", ".join(known)}.')
    return kind(**options)
