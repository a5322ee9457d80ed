"""What only rank 0 can do or knows, shared with all ranks of a distributed run."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from mmengine.dist import broadcast, broadcast_object_list, get_world_size, is_main_process
from torch import nn

Value = TypeVar('Value')


def call_on_first_rank(function: Callable[..., Value], *arguments: object) -> Value:
    """Call a function on rank 0 and return its value on all ranks; an error there is raised on all of them."""
    value: Any = None
    error: Exception | None = None
    if is_main_process():
        try:
            value = function(*arguments)
        except Exception as caught:
            error = caught
    box = [(value, None if error is None else f'{type(error).__name__}: {error}')]
    broadcast_object_list(box)
    if error is not None:
        raise error
    value, message = box[0]
    if message is not None:
        raise RuntimeError(f'rank 0 failed: {message}')
    return value


@contextmanager
def broadcast_buffers(model: nn.Module | None) -> Iterator[None]:
    """Give a model rank 0's buffers on all ranks, and afterwards its own again; called by all ranks.

    Ranks have the same weights, but running statistics of their own, unless the model's wrapper broadcasts them;
    checkpoints hold those of rank 0. A critic must predict the same on all ranks, and after a resume.
    """
    if model is None or get_world_size() == 1:
        yield
        return
    buffers = list(model.buffers())
    own = [buffer.clone() for buffer in buffers]
    try:
        for buffer in buffers:
            broadcast(buffer)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, own):
                buffer.copy_(value)
