"""Work that several processes share without talking to each other: each takes every n-th part."""
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar('Item')


@dataclass(frozen=True)
class Shard:
    """One of ``count`` processes that share a piece of work.

    Args:
        index: Its number, from 0.
        count: How many there are.

    Raises:
        ValueError: If they are out of range.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f'`shard` must be i/n with i from 0 to n - 1, got {self.index}/{self.count}.')

    def __str__(self) -> str:
        return f'{self.index}-of-{self.count}'

    @classmethod
    def parse(cls, text: str) -> 'Shard':
        """Read ``i/n``, such as '0/4'.

        Raises:
            ValueError: If it is something else.
        """
        found = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text)
        if found is None:
            raise ValueError(f"`shard` must be i/n with i from 0 to n - 1, such as 0/4, got {text!r}.")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> 'Shard | None':
        """The rank of this process under torchrun; None if it is the only one, or not started by it."""
        count = int(environment.get('WORLD_SIZE', 1)) if 'RANK' in environment else 1
        return cls(int(environment['RANK']), count) if count > 1 else None

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of some items."""
        return items[self.index::self.count]


def default_device(environment: Mapping[str, str] = os.environ) -> str:
    """The GPU of this process, that of its local rank under torchrun; 'cpu' where there is none."""
    if not torch.cuda.is_available():
        return 'cpu'
    return f'cuda:{environment["LOCAL_RANK"]}' if 'LOCAL_RANK' in environment else 'cuda'
