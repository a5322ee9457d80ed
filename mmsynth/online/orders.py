"""Orders for new samples and their answers; the side of both that paints in the training process.

The hook drives a :class:`Painting`: :class:`InProcess` here, which paints while training waits, or
:class:`mmsynth.online.process.RefreshProcess`, which paints in a process of its own. It does not know which::

    painting.start()
    ...
    for answer in painting.collect():   # every iteration; never waits
        publish(answer)
    if due and painting.idle:
        painting.submit(Order(round, values, segmentor))
    ...
    painting.close()
"""
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn

from mmsynth.online.sample import Sample


@dataclass(frozen=True)
class Order:
    """A round to paint.

    Attributes:
        round: Its number.
        values: What else the painter must know, such as the current class losses: values that JSON has.
        segmentor: The critic as it is now; None where the painter has one of its own. It is borrowed until ``submit``
            returns.
        weights: In a process of its own, the critic's tensors by name in the place of ``segmentor``.
    """

    round: int
    values: Mapping[str, Any] = field(default_factory=dict)
    segmentor: nn.Module | None = None
    weights: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Painted:
    """What a painter returns.

    Attributes:
        samples: In the order of their ids.
        facts: What the log tells of the round, values that JSON has: samples that failed, losses, rates.
    """

    samples: Sequence[Sample]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What became of an order.

    Attributes:
        round: The order's.
        samples: As the painter returned them; none if it failed.
        facts: As the painter returned them.
        error: Why there are no samples; None if all went well.
        seconds: From the order to the answer.
    """

    round: int
    samples: Sequence[Sample] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.


class Painter(Protocol):
    """Paints a round. An error that it raises costs that round; what concerns one mask it handles itself."""

    def __call__(self, order: Order) -> Painted: ...


class Painting(Protocol):
    """Where orders are carried out."""

    @property
    def idle(self) -> bool:
        """Whether an order can be submitted now."""

    @property
    def ended(self) -> str | None:
        """Why no order will be taken any more; None while there is hope."""

    def start(self) -> None:
        """Begin to build what paints."""

    def submit(self, order: Order) -> None:
        """Take an order."""

    def collect(self) -> list[Answer]:
        """The answers since the last call."""

    def close(self) -> None:
        """End; what was not collected is lost. Safe to call twice."""


class InProcess:
    """Paints in the training process: ``submit`` returns when the round is painted.

    Args:
        painter: What paints.
    """

    def __init__(self, painter: Painter) -> None:
        self._painter = painter
        self._answers: list[Answer] = []

    @property
    def idle(self) -> bool:
        """Always: an order ends with its submission."""
        return True

    @property
    def ended(self) -> str | None:
        """Never."""
        return None

    def start(self) -> None:
        """Nothing to do."""

    def submit(self, order: Order) -> None:
        """Paint a round. An error of the painter goes into the answer: it must not end the training."""
        begin = time.monotonic()
        try:
            painted = self._painter(order)
            answer = Answer(order.round, painted.samples, painted.facts)
        except Exception as error:
            answer = Answer(order.round, error=describe(error))
        self._answers.append(replace(answer, seconds=time.monotonic() - begin))

    def collect(self) -> list[Answer]:
        """The answers since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """Forget what was not collected."""
        self._answers.clear()


def describe(error: BaseException) -> str:
    """An error in one line, as the last line of its traceback, cut after 1000 characters."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text if len(text) <= 1000 else f'{text[:1000]}…'
