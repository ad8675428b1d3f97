import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.core import Schedule, StageArgs
from superpose.core.stage import LR_BLEND_STEPS

FACTORS, BLENDS = st.floats(0.05, 4.0), st.integers(0, 12)
TOTAL = 80


@st.composite
def schedules(draw, blends=BLENDS):
    """One to four stages of a run of 80 steps, some of them shorter than their blends, and what is left."""
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    first = draw(FACTORS.filter(lambda factor: factor != 1))
    factors = [first, *(draw(FACTORS) for _ in lengths[1:])]
    sizes = [draw(st.sampled_from([1, 2, 4])) for _ in lengths]
    each = zip(lengths, sizes, factors, strict=True)
    return Schedule(
        TOTAL,
        stages=[
            StageArgs(length / TOTAL, bag_size=size, lr_factor=factor, lr_blend_steps=draw(blends))
            for length, size, factor in each
        ],
    )


def factors_of(schedule):
    return [schedule.step_at(step).lr_factor for step in range(schedule.total_steps)]


def walked(schedule):
    """The same step by step, as one would write it with a state: a boundary sets out from the last value."""
    values, begun, blend = [], -math.inf, 0
    value = origin = target = schedule.stages[0].lr_factor
    starts = {stage.start: (before, stage) for before, stage in pairwise(schedule.stages)}
    for step in range(schedule.total_steps):
        if step in starts:
            before, stage = starts[step]
            begun, blend, origin, target = step, before.lr_blend_steps, value, stage.lr_factor
        value = origin + (target - origin) * min(1.0, (step - begun + 1) / (blend + 1))
        values.append(value)
    return values


@given(schedules())
def test_a_factor_is_that_of_a_walk_from_the_first_step(schedule):
    assert factors_of(schedule) == pytest.approx(walked(schedule))


@given(schedules(blends=st.just(LR_BLEND_STEPS)))
def test_no_step_jumps_by_more_than_its_share(schedule):
    ours, factors = factors_of(schedule), [stage.lr_factor for stage in schedule.stages]
    most = (max(factors) - min(factors)) / (LR_BLEND_STEPS + 1)
    assert all(abs(after - before) <= most + 1e-12 for before, after in pairwise(ours))
    assert all(min(factors) <= value <= max(factors) for value in ours)


@given(schedules())
def test_after_the_blend_it_is_the_stages_own_to_the_bit_and_recoverys_is_one(schedule):
    ours = factors_of(schedule)
    for before, stage in pairwise(schedule.stages):
        assert set(ours[stage.start + before.lr_blend_steps : stage.stop]) <= {stage.lr_factor}
    assert ours[-1] == 1.0


@given(schedules())
def test_it_goes_through_json_and_a_longer_run(schedule):
    again = Schedule.from_dict(schedule.to_dict())
    assert factors_of(again) == factors_of(schedule)
    # Recovery is longer, and the rest as it was.
    assert factors_of(schedule.lengthened(TOTAL + 20))[:TOTAL] == factors_of(schedule)


def test_hand_written_steps():
    """Half the rate for 3 steps, then over 3 steps to the whole."""
    schedule = Schedule(10, stages=[StageArgs(0.3, bag_size=2, lr_factor=0.5, lr_blend_steps=3)])
    assert factors_of(schedule) == [0.5, 0.5, 0.5, 0.625, 0.75, 0.875, 1, 1, 1, 1]
    at_once = Schedule(5, stages=[StageArgs(0.4, bag_size=2, lr_factor=0.5, lr_blend_steps=0)])
    assert factors_of(at_once) == [0.5, 0.5, 1, 1, 1]
    assert factors_of(Schedule(20, 4, 0.3)) == [1.0] * 20


@pytest.mark.parametrize("factor", [0, -1.0, math.inf, math.nan, True, "2"])
def test_what_is_no_factor_is_refused(factor):
    with pytest.raises(ValueError, match="lr_factor is"):
        StageArgs(0.3, bag_size=2, lr_factor=factor)


@pytest.mark.parametrize("blend", [-1, 0.5, True])
def test_what_is_no_number_of_steps_is_refused(blend):
    with pytest.raises(ValueError, match="lr_blend_steps is"):
        StageArgs(0.3, bag_size=2, lr_factor=0.5, lr_blend_steps=blend)


def test_a_blend_of_nothing_is_refused():
    with pytest.raises(ValueError, match="lr_blend_steps would be ignored"):
        Schedule(100, stages=[StageArgs(0.3, bag_size=2, lr_blend_steps=3)])
