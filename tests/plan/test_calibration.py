import pytest

from superpose import Schedule
from superpose.plan.advisor import make_plan
from superpose.plan.calibration import Calibration, calibrate
from superpose.plan.fit import request_of
from superpose.plan.hardware import parse_hardware


def test_both_phases_are_measured(recipe, store):
    measured = calibrate(recipe, store)
    assert set(measured.step_seconds) == set(measured.reading_seconds) == {1, 4}
    assert all(0 < measured.reading_seconds[size] < seconds < 60 for size, seconds in measured.step_seconds.items())
    assert measured.memory > 2**20
    assert measured.precision == "float32"
    plan = make_plan(request_of(recipe, parse_hardware("cpu")), calibration=measured)
    assert plan.cost.hours == pytest.approx((20 * measured.mean_step(recipe.schedule) / 3600,) * 2)


def test_the_mean_step_is_weighted_by_the_stages():
    measured = Calibration({1: 1.0, 4: 2.0}, {1: 0.1, 4: 0.1}, 0, "float32")
    assert measured.mean_step(Schedule(100, 4, 0.3)) == pytest.approx(0.3 * 2 + 0.7)
    assert measured.mean_step(Schedule(100, 5, 0.3)) == pytest.approx(0.3 * 2 + 0.7)  # the nearest
