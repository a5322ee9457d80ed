"""Progress bars with time left."""
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar('Item')
_LOG_INTERVAL = 10.0  # seconds between lines where the output is a file


def progress_bar(items: Iterable[Item] | None = None, *, total: int | None = None, initial: int = 0, unit: str = 'it',
                 title: str = '', hidden: bool = False, smoothing: float = 0.3) -> 'tqdm[Item]':
    """A progress bar on stderr, with rate and time left; on something that is no terminal, a line now and then.

    Args:
        items: What to go through; None for a bar that is moved by hand with ``update``.
        total: Number of items, where ``items`` cannot tell.
        initial: Items already done, for a resumed run.
        unit: What an item is.
        title: Stands before the bar.
        hidden: Show nothing, for what is short.
        smoothing: Weight of the newest items in the rate, in [0, 1]; 0 for the average, where items differ in length.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        initial=initial,
        unit=unit,
        desc=title,
        disable=hidden,
        smoothing=smoothing,
        miniters=0,  # `update(0)` too tells the time
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        mininterval=0.2 if terminal else _LOG_INTERVAL)
