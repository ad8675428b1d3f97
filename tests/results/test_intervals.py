import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.results.intervals import Interval, ends, spoken
from superpose.results.statistics import paired_difference


def test_it_is_spoken_with_its_ends_or_alone():
    assert spoken(Interval(-0.0356, -0.058, -0.0132)) == "-0.0356 (-0.0580 to -0.0132)"
    assert spoken(Interval(0.25, 0.2, 0.3), ".2f") == "0.25 (0.20 to 0.30)"
    assert spoken(Interval(1.0)) == "+1.0000"
    assert ends(Interval(1.0)) == ""


@given(st.integers(-3, 3), st.integers(-3, 3))
def test_it_excludes_zero_where_both_ends_lie_on_one_side(a, b):
    low, high = sorted((a, b))
    assert Interval((low + high) / 2, low, high).excludes_zero == (low * high > 0)
    assert not Interval(a).excludes_zero


def test_a_difference_is_an_interval_and_is_written_as_a_mean():
    difference = paired_difference([3.0, 3.1, 3.3], [2.9, 3.02, 3.1])
    assert spoken(difference).startswith("-0.1267 (")
    saved = difference.record()
    assert saved["mean"] == pytest.approx(difference.value)
    assert set(saved) == {"mean", "low", "high", "seeds", "deviation", "bootstrap"}
