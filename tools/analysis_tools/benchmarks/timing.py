"""Steps timed in turn, and ratios of what was timed in the same round."""
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a measure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        """Of at least one value; a single one has itself as quartiles."""
        low, median, high = statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else [
            values[0]] * 3
        return cls(median, low, high)

    def __str__(self) -> str:
        return f'{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]'


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The ratio to a base, taken within each round, so that what slows a whole round does not count."""
    return Spread.of([value / own for value, own in zip(values, base, strict=True)])


def time_in_turn(steps: Mapping[str, Callable[[], object]], rounds: int, device: str,
                 done: Callable[[], object]) -> dict[str, list[float]]:
    """The seconds of each step in every round but a first one, which warms up; every other round runs backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps)[::1 if number % 2 else -1]:
            elapsed = seconds_of(steps[name], device)
            seconds[name] += [elapsed] if number else []
            done()
    return seconds


def seconds_of(step: Callable[[], object], device: str) -> float:
    """Seconds of the clock on CUDA, of processor time (all threads together) on a CPU."""
    start = now(device)
    step()
    return now(device) - start


def now(device: str) -> float:
    """A moment in those seconds; on CUDA, after all that was asked for is done."""
    if not device.startswith('cuda'):
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
