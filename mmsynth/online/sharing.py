"""One round from the shares of all ranks."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine import dist
from torch import nn

from mmsynth.online.facts import merge_facts
from mmsynth.online.orders import Answer


def gather_answers(answer: Answer) -> Answer | None:
    """The round as a whole on rank 0, and None on the others; called by all ranks.

    A share that failed costs its own samples, not the round; the round has failed if all shares have.
    """
    if dist.get_world_size() == 1:
        return answer
    # NCCL cannot gather objects to one rank
    gather = dist.all_gather_object if dist.get_backend() == 'nccl' else dist.gather_object
    parts: list[Answer] | None = gather(answer)
    return None if parts is None or dist.get_rank() else join_answers(parts)


def join_answers(parts: list[Answer]) -> Answer:
    """Several shares of one round as one answer, samples in the order of their ids."""
    errors = [part.error for part in parts if part.error is not None]
    if len(errors) == len(parts):
        return Answer(parts[0].round, error=errors[0], seconds=max(part.seconds for part in parts))
    return Answer(
        parts[0].round,
        samples=sorted((sample for part in parts for sample in part.samples), key=lambda sample: sample.id),
        facts=merge_facts([part.facts for part in parts] + [dict(failed={error: 1}) for error in errors]),
        seconds=max(part.seconds for part in parts))


def tell_all(value: Any) -> Any:
    """Rank 0's value, on all ranks; they wait for it."""
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


@contextmanager
def first_ranks_buffers(model: nn.Module | None) -> Iterator[None]:
    """Inside, a model has rank 0's buffers on all ranks; afterwards its own again. Called by all ranks.

    Ranks have the same weights, but running statistics of their own: the host does not share them, and checkpoints hold
    those of rank 0. A critic must read alike on all ranks, and after a resume.
    """
    if model is None or dist.get_world_size() == 1:
        yield
        return
    buffers = list(model.buffers())
    own = [buffer.clone() for buffer in buffers]
    try:
        for buffer in buffers:
            dist.broadcast(buffer)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, own):
                buffer.copy_(value)
