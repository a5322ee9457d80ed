"""Batches of items that have one shape."""
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import groupby, islice
from typing import TypeVar

Item = TypeVar('Item')


def batches_of_one_shape(items: Iterable[Item], shape: Callable[[Item], Hashable],
                         batch_size: int) -> Iterator[list[Item]]:
    """Neighbouring items of one shape, in their order, at most ``batch_size`` together."""
    for _, alike in groupby(items, key=shape):
        while batch := list(islice(alike, batch_size)):
            yield batch
