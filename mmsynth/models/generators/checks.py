"""Checks of the settings that every generator shares."""
import logging
from collections.abc import Sequence

from mmengine.logging import print_log


def check_run(num_steps: int, guidance_scale: float) -> None:
    """Raise ValueError for settings of sampling that no run can have."""
    if num_steps < 1 or guidance_scale < 1:
        raise ValueError('`num_steps` and `guidance_scale` must be at least 1, got '
                         f'{num_steps} and {guidance_scale}.')


def check_share(option: str, share: float) -> None:
    """Raise ValueError for a share outside of [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f'`{option}` must be in [0, 1], got {share}.')


def check_interval(option: str, interval: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest sigma of an interval.

    Raises:
        ValueError: If they are not two numbers in [0, 1], the lower one first.
    """
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f'`{option}` must be two sigmas in [0, 1], the lower one first, got {tuple(interval)}.')
    return interval[0], interval[1]


def check_condition_guidance(part: str, scale: float, dropout: float) -> None:
    """Raise ValueError for a negative scale; warn where the network has hardly been trained without that part."""
    if scale < 0:
        raise ValueError(f'`{part}_guidance_scale` must not be negative, got {scale}; 1 is off.')
    if scale != 1 and not dropout:
        print_log(f'`{part}_guidance_scale` is {scale}, but `{part}_dropout` is 0: a generator that has never been '
                  f'trained without its {part} does not know what to be guided away from. Train with '
                  f'`{part}_dropout`, 0.15 for instance.', 'current', logging.WARNING)
