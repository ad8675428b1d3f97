import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.core.rates import BLEND_STEPS, blended_factor

FACTORS = st.floats(0.05, 4.0)


@st.composite
def stages(draw):
    """Starts and factors of one to five stages, some of them shorter than any blend."""
    factors = draw(st.lists(FACTORS, min_size=1, max_size=5))
    lengths = draw(st.lists(st.integers(1, 40), min_size=len(factors) - 1, max_size=len(factors) - 1))
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts, factors


def walked(starts, factors, blend_steps, total):
    """The same step by step, as one would write it with a state: a boundary sets out from the last value."""
    values, value, begun, origin, target = [], factors[0], -math.inf, factors[0], factors[0]
    for step in range(total):
        if step in starts[1:]:
            begun, origin, target = step, value, factors[starts.index(step)]
        share = min(1.0, (step - begun + 1) / (blend_steps + 1))
        value = origin + (target - origin) * share
        values.append(value)
    return values


@given(stages(), st.integers(0, 30))
def test_a_factor_is_that_of_a_walk_from_the_first_step(stages, blend_steps):
    starts, factors = stages
    total = starts[-1] + 50
    ours = [blended_factor(starts, factors, step, blend_steps) for step in range(total)]
    assert ours == pytest.approx(walked(starts, factors, blend_steps, total))


@given(stages(), st.integers(0, 30))
def test_no_step_jumps_by_more_than_its_share(stages, blend_steps):
    starts, factors = stages
    ours = [blended_factor(starts, factors, step, blend_steps) for step in range(starts[-1] + 50)]
    most = (max(factors) - min(factors)) / (blend_steps + 1)
    assert all(abs(after - before) <= most + 1e-12 for before, after in pairwise(ours))
    assert all(min(factors) <= value <= max(factors) for value in ours)


@given(stages(), st.integers(0, 30))
def test_after_the_blend_it_is_the_stages_own_to_the_bit(stages, blend_steps):
    starts, factors = stages
    assert blended_factor(starts, factors, starts[-1] + blend_steps, blend_steps) == factors[-1]


@given(stages(), st.integers(0, 200))
def test_factors_of_one_change_no_bit(stages, step):
    starts, factors = stages
    assert blended_factor(starts, [1.0] * len(factors), step, BLEND_STEPS) == 1.0


def test_hand_written_steps():
    assert [blended_factor((0, 3), (1.0, 2.0), step, 3) for step in range(8)] == [1, 1, 1, 1.25, 1.5, 1.75, 2, 2]
    assert [blended_factor((0, 3), (1.0, 2.0), step, 0) for step in range(5)] == [1, 1, 1, 2, 2]
