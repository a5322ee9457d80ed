"""The share of synthetic samples, in closed form and over any number of batches."""
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsynth.datasets.samplers.schedule import RatioSchedule

SCHEDULES = st.builds(
    lambda ratio, warmup, ramp, rest: RatioSchedule(ratio / 1000, warmup, ramp,
                                                    None if rest is None else warmup + ramp + rest),
    st.integers(0, 1000), st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 20))


def test_the_share_of_each_iteration():
    schedule = RatioSchedule(0.4, warmup=2, ramp=4, stop=8)
    assert [float(schedule.share(iteration)) for iteration in range(10)] == [0, 0, .1, .2, .3, .4, .4, .4, 0, 0]
    assert [float(RatioSchedule(0.3).share(iteration)) for iteration in (0, 1, 10**6)] == [0.3] * 3
    assert [float(RatioSchedule(1, ramp=1).share(iteration)) for iteration in (0, 1)] == [1, 1]


def test_a_share_of_three_tenths_of_eight():
    quotas = [RatioSchedule(0.3).quota(iterations, 8) for iterations in range(1001)]
    assert {after - before for before, after in zip(quotas, quotas[1:])} == {2, 3}
    assert all(abs(quota - Fraction(3, 10) * 8 * iterations) <= Fraction(1, 2)
               for iterations, quota in enumerate(quotas))
    assert quotas[1000] == 2400  # 0.3 is counted as 3/10, not as the float beside it


@given(SCHEDULES, st.integers(1, 50))
def test_every_batch_has_the_whole_number_next_to_its_share(schedule, size):
    total, quota = Fraction(0), 0
    for iteration in range(60):
        share, before = schedule.share(iteration), quota
        assert 0 <= share <= Fraction(str(schedule.ratio))
        total, quota = total + share, schedule.quota(iteration + 1, size)
        assert total == schedule.total(iteration + 1)
        assert abs(quota - size * total) <= Fraction(1, 2)
        assert abs(quota - before - size * share) < 1 or (size * share).denominator == 1
        assert 0 <= quota - before <= size


@pytest.mark.parametrize('options, message', [
    (dict(ratio=1.2), '`ratio` must be a number in [0, 1], the share of synthetic samples, got 1.2.'),
    (dict(ratio=float('nan')), 'got nan.'),
    (dict(ratio=True), 'got True.'),
    (dict(ratio='0.3'), "got '0.3'."),
    (dict(ratio=.3, warmup=-1), '`warmup` must be a number of iterations, 0 or more, got -1.'),
    (dict(ratio=.3, ramp=2.5), '`ramp` must be a number of iterations, 0 or more, got 2.5.'),
    (dict(ratio=.3, warmup=5, ramp=5, stop=9), '`stop` must not come before `warmup` + `ramp` = 10, got 9.'),
])
def test_messages(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RatioSchedule(**options)
