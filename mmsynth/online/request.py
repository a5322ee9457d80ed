"""Requests for rounds of synthetic samples, their results, and synthesis in the training process.

OnlineSynthesisHook drives a backend, either :class:`InProcess`, which generates while training waits, or
:class:`mmsynth.online.worker.WorkerProcess`, which generates in a process of its own; both have this interface::

    backend.start()
    ...
    for result in backend.collect():    # every iteration; never waits
        publish(result)
    if due and backend.idle:            # in process: always
        backend.submit(SynthesisRequest(round, segmentor))
    ...
    backend.close()                     # safe to call twice
"""
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mmengine import dist
from mmengine.logging import print_log
from torch import Tensor, nn

from mmsynth.online.sample import Sample
from mmsynth.online.statistics import merge_statistics


@dataclass(frozen=True)
class SynthesisRequest:
    """A round to generate.

    Attributes:
        round: Its number.
        segmentor: The segmentor in training as it is now, where the round needs it; borrowed until ``submit`` returns.
        weights: In a worker process, the segmentor's tensors by name in the place of ``segmentor``.
    """

    round: int
    segmentor: nn.Module | None = None
    weights: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class SynthesisResult:
    """The result of a request.

    Attributes:
        round: The request's.
        samples: In the order of their ids; none if it failed.
        statistics: Counts and sums, see :mod:`mmsynth.online.statistics`.
        error: Why the whole request failed; None if it did not.
        seconds: From the request to the result.
    """

    round: int
    samples: Sequence[Sample] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.

    @property
    def failure(self) -> str | None:
        """Why there is nothing of the round: its error, or that every single mask failed. None if neither.

        A round whose samples were all dropped by the filter has not failed.
        """
        failed, not_finite = self.statistics.get('failed') or {}, self.statistics.get('not_finite', 0)
        if self.error is not None or self.samples or self.statistics.get('filtered') or not (failed or not_finite):
            return self.error
        causes = [f'{count} x {message}' for message, count in failed.items()]
        causes += [f'{not_finite} x values that are not finite'] if not_finite else []
        return f'no image could be generated: {"; ".join(causes[:3])}'


class Synthesizer(Protocol):
    """Generates a round. An error that it raises costs the round; errors of single masks it counts."""

    def __call__(self, request: SynthesisRequest) -> SynthesisResult: ...


class InProcess:
    """Generate in the training process: ``submit`` returns when the round is done.

    Args:
        synthesizer: What generates.
    """

    idle, ended = True, None

    def __init__(self, synthesizer: Synthesizer) -> None:
        self._synthesizer = synthesizer
        self._results: list[SynthesisResult] = []

    def start(self) -> None:
        """Do nothing."""

    def submit(self, request: SynthesisRequest) -> None:
        """Generate a round. An error is logged and becomes the result's: the other ranks' shares may be fine."""
        begin = time.monotonic()
        try:
            result = self._synthesizer(request)
        except Exception as error:
            print_log(f'synthesis round {request.round}:\n{traceback.format_exc()}', 'current', logging.ERROR)
            result = SynthesisResult(request.round, error=describe(error))
        self._results.append(replace(result, seconds=time.monotonic() - begin))

    def collect(self) -> list[SynthesisResult]:
        """Return the results since the last call."""
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """Drop what was not collected."""
        self._results.clear()


def gather_results(result: SynthesisResult) -> SynthesisResult | None:
    """Join all ranks' shares of a round on rank 0, and return None on the others; called by all ranks."""
    if dist.get_world_size() == 1:
        return result
    # NCCL cannot gather objects to one rank
    gather = dist.all_gather_object if dist.get_backend() == 'nccl' else dist.gather_object
    parts: list[SynthesisResult] | None = gather(result)
    return None if parts is None or dist.get_rank() else join_results(parts)


def join_results(parts: list[SynthesisResult]) -> SynthesisResult:
    """Join the shares of a round. One that failed costs its own samples; the round has failed if all have."""
    number, seconds = parts[0].round, max(part.seconds for part in parts)
    errors = [part.error for part in parts if part.error is not None]
    if len(errors) == len(parts):
        return SynthesisResult(number, error=errors[0], seconds=seconds)
    samples = sorted((sample for part in parts for sample in part.samples), key=lambda sample: sample.id)
    statistics = merge_statistics([part.statistics for part in parts] + [dict(failed={error: 1}) for error in errors])
    return SynthesisResult(number, samples, statistics, seconds=seconds)


def describe(error: BaseException) -> str:
    """Describe an error in one line, as the last line of its traceback, cut after 1000 characters."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text if len(text) <= 1000 else f'{text[:1000]}…'
