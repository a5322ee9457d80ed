"""How many samples of a batch are synthetic, as a function of the training iteration alone."""
import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real


@dataclass(frozen=True)
class RatioSchedule:
    """The wanted share of synthetic samples: nothing, a linear rise, a constant, nothing.

    ::

        share     ratio ─────────────╮
                 ╱                   │
        0 ──────╯                    ╰────────
               warmup  warmup+ramp   stop      iteration

    Args:
        ratio: The share, in [0, 1]. Counted as the decimal number that it is written as: 0.3 is 3/10.
        warmup: Iterations without synthetic samples at the start.
        ramp: Iterations in which the share then rises by equal steps, the last of which reaches ``ratio``.
        stop: The iteration from which on there are none again; None for never.

    Raises:
        ValueError: If an option is out of range, or ``stop`` comes before ``ratio`` is reached.
    """

    ratio: float
    warmup: int = 0
    ramp: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, Real) or not 0 <= self.ratio <= 1:
            raise ValueError(f'`ratio` must be a number in [0, 1], the share of synthetic samples, got {self.ratio!r}.')
        for name in ('warmup', 'ramp', 'stop'):
            value = getattr(self, name)
            if name == 'stop' and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
                raise ValueError(f'`{name}` must be a number of iterations, 0 or more, got {value!r}.')
        if self.stop is not None and self.stop < self.warmup + self.ramp:
            raise ValueError(f'`stop` must not come before `warmup` + `ramp` = {self.warmup + self.ramp}, got '
                             f'{self.stop}.')

    def share(self, iteration: int) -> Fraction:
        """The wanted share of an iteration's batch."""
        return self.total(iteration + 1) - self.total(iteration)

    def total(self, iterations: int) -> Fraction:
        """The sum of the shares of the first so many iterations, in closed form."""
        last = iterations if self.stop is None else min(iterations, self.stop)
        mixed = max(0, last - self.warmup)
        rising = min(mixed, self.ramp)
        risen = Fraction(rising * (rising + 1), 2 * self.ramp) if rising else Fraction(0)
        return Fraction(str(self.ratio)) * (risen + mixed - rising)

    def quota(self, iterations: int, batch_size: int) -> int:
        """How many samples of the first so many batches are synthetic: the sum of the shares, rounded.

        So every batch has the whole number below or above its share, and the sum is never off by more than a half: the
        rule of the largest remainder, over batches.
        """
        return math.floor(batch_size * self.total(iterations) + Fraction(1, 2))
