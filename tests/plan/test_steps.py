from pathlib import Path

import numpy as np
import pytest

from superpose.compare.comparison import Comparison
from superpose.plan.evidence import Point, points_of
from superpose.plan.steps import AtSteps, Measured, few_steps, gain_by_steps, gains_from, measured

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def entry(gain, error, steps=1000, bag_size=4, ratio=0.1):
    return Measured(Point(1e5, steps * 512.0, bag_size, ratio, "uniform", gain, "text", error=error), steps, 5)


def test_the_packaged_gains_are_those_of_the_comparisons():
    known = {(e.point.source, e.steps): e.point for e in measured() if e.point.source != "sweep"}
    seen = set()
    for name in ("english", "python", "python-16000", "python-32000"):
        for point in points_of(Comparison.load(RESULTS / name), name.split("-")[0]):
            key = (point.source, round(point.latents / 512))
            assert known[key].gain == pytest.approx(point.gain)
            assert known[key].error == pytest.approx(point.error)
            seen.add(key)
    assert seen == set(known)


def test_gains_that_agree_are_weighed_by_their_precision():
    (row,) = gain_by_steps([entry(0.04, 0.01), entry(0.05, 0.02)])
    assert row.gain == pytest.approx((0.04 * 4 + 0.05) / 5)
    assert row.high - row.gain == pytest.approx(1.645 / np.sqrt(1 / 0.01**2 + 1 / 0.02**2), rel=1e-3)
    assert row.comparisons == 2


def test_gains_that_disagree_are_less_certain():
    (row,) = gain_by_steps([entry(0.0, 0.01), entry(0.1, 0.01)])
    assert row.gain == pytest.approx(0.05)
    # The variance between them is that of the two less their own: (0.1^2 / 2) - 0.01^2.
    assert row.high - row.gain == pytest.approx(1.645 * np.sqrt(0.1**2 / 2 / 2), rel=1e-3)


def test_other_settings_are_not_mixed_in():
    rows = gain_by_steps([entry(0.1, 0.01), entry(-0.1, 0.01, ratio=0.5), entry(0.2, 0.01, steps=500)])
    assert [(row.steps, row.comparisons) for row in rows] == [(500, 1), (1000, 1)]


def test_the_steps_from_which_on_it_gains():
    rows = [AtSteps(1, 0.1, 0.05, 0.15, 1), AtSteps(2, 0.0, -0.1, 0.1, 1), AtSteps(4, 0.1, 0.01, 0.2, 1)]
    assert gains_from(rows) == 4
    assert gains_from(rows[:2]) is None
    assert gains_from([]) is None


def test_our_models_gain_from_4000_steps_on():
    rows = gain_by_steps()
    assert [row.steps for row in rows] == [1000, 2000, 4000, 8000, 16000, 32000]
    assert gains_from(rows) == 4000


def test_few_steps_are_warned_of():
    assert few_steps(20_000, 16, 0.9) == ()
    (sentence,) = few_steps(3000, 4, 0.1)
    assert "3,000 steps are few" in sentence
    assert "4,000 steps on" in sentence
    lost = few_steps(2000, 8, 0.5)
    assert len(lost) == 2
    assert "s 4, r 0.5" in lost[1]
