"""Orders carried out in the training process."""
import pytest
from torch import nn
from toy_generators import build, sample

from mmsynth.online.orders import InProcess, Order, Painted, describe


def test_in_process_paints_with_the_living_segmentor() -> None:
    critic, seen = nn.Linear(1, 1), []

    def paint(order: Order) -> Painted:
        seen.append(order)
        return Painted([sample('a')], dict(dropped=0))

    painting = InProcess(paint)
    painting.start()
    order = Order(2, segmentor=critic)
    painting.submit(order)
    [answer] = painting.collect()
    assert seen == [order] and seen[0].segmentor is critic
    assert answer.round == 2 and answer.error is None and answer.facts == dict(dropped=0) and answer.seconds >= 0
    assert painting.collect() == [] and painting.idle and painting.ended is None


def test_in_process_an_error_is_an_answer_but_an_interruption_is_not() -> None:
    painting = InProcess(build())
    painting.submit(Order(5, dict(do='raise')))
    [answer] = painting.collect()
    assert answer.error == 'ValueError: mask 5 cannot be painted' and not answer.samples

    def interrupted(order: Order) -> Painted:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InProcess(interrupted).submit(Order(0))


def test_a_long_error_is_cut() -> None:
    assert len(describe(ValueError('x' * 10**6))) < 1100
