import math

import pytest

from superpose.train.records import Validation
from superpose.train.watch.baseline import Crossing, crossing


def validation(step, loss):
    return Validation(
        step=step, val_loss=loss, val_bits_per_byte=1.0, raw_tokens=step, latents=step, flops=10 * step, seconds=1.0
    )


def test_a_crossing_that_was_seen():
    baseline = [validation(step, 5 - step / 100) for step in (0, 100, 200, 300)]
    ours = [validation(100, 9.0), validation(150, 3.9), validation(180, 3.1)]
    assert crossing(ours, baseline, 120) == Crossing(180, forecast=False)


def test_a_crossing_to_come_is_read_off_the_gaps():
    """Gaps that fall linearly in the logarithm of the steps since the switch are forecast exactly."""
    baseline = [validation(step, 3.0) for step in (0, 10_000)]
    ours = [validation(100 + since, 3.0 + 0.1 * math.log(1000 / since)) for since in (10, 20, 50, 100)]
    found = crossing(ours, baseline, 100)
    assert found.forecast
    assert found.step == pytest.approx(1100, abs=2)


def test_a_gap_that_does_not_close_has_no_crossing():
    baseline = [validation(step, 3.0) for step in (0, 10_000)]
    ours = [validation(100 + since, 3.0 + 0.1 * math.log(since)) for since in (10, 20, 50)]
    assert crossing(ours, baseline, 100) == Crossing(None, forecast=True)


def test_too_little_to_go_by():
    baseline = [validation(step, 3.0) for step in (0, 300)]
    assert crossing([validation(110, 4.0)], baseline, 100) is None
    assert crossing([validation(110, 4.0), validation(900, 2.0)], baseline, 100) is None, "outside the baseline"
    assert crossing([validation(110, 4.0)], [], 100) is None
