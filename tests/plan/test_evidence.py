from dataclasses import replace
from pathlib import Path

import pytest

from superpose.compare.comparison import Comparison
from superpose.errors import UserError
from superpose.plan.evidence import (
    LATENTS_PER_STEP,
    NORMAL,
    SMALL_RULE,
    Point,
    Setting,
    measured_points,
    points_of,
    published_bound,
    published_points,
    short,
)
from superpose.train.recipe_file import with_settings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_papers_points():
    points = published_points()
    assert len(points) == 460
    by_source = {point.source: point for point in points if point.setting == Setting(6, 0.3)}
    assert by_source["270m_20k"].gain == pytest.approx(3.2124 - 3.1423)
    assert by_source["3b_20k"].gain == pytest.approx(2.808 - 2.676)
    assert all(point.latents == point.steps * LATENTS_PER_STEP for point in points)
    # 3B: 20,000 TST steps end at 2.676, 36,000 ordinary ones at 2.677; the ordinary 50,000 at 2.640.
    assert by_source["3b_20k"].speedup == pytest.approx(1.8, rel=0.02)
    assert by_source["270m_20k"].speedup == pytest.approx(2.56, rel=0.01)
    assert by_source["270m_100k"].speedup is None  # no ordinary run is longer
    assert published_bound() == (49_983, pytest.approx(0.016), pytest.approx(2.5, rel=0.001))


def test_the_packaged_gains_are_those_of_the_comparisons():
    known = {(p.source, p.steps): p for p in measured_points() if p.source != "sweep"}
    seen = set()
    for name in ("english", "python-32000"):
        comparison = Comparison.load(RESULTS / name)
        for point in points_of(comparison, name.split("-")[0]):
            packaged = known[point.source, point.steps]
            assert (packaged.gain, packaged.error) == (pytest.approx(point.gain), pytest.approx(point.error))
            assert packaged.speedup == pytest.approx(point.speedup)
            low = comparison.equal_flops(point.steps).low
            assert point.gain + NORMAL * point.error == pytest.approx(-low)
            seen.add((point.source, point.steps))
    assert len(seen) == 8
    assert {p.setting for p in known.values()} == {SMALL_RULE}


def test_comparisons_of_another_kind_are_no_evidence():
    comparison = Comparison.load(RESULTS / "english")
    for setting in ({"mode": "output"}, {"weighting": "exponential"}):
        recipe = with_settings(comparison.recipe, "superposition", **setting)
        with pytest.raises(UserError, match="mine: only comparisons of"):
            points_of(replace(comparison, recipe=recipe), "mine")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ((0, 0.3), "bag size 0"),
        ((4, 1.0), "without recovery"),
        ((4, -0.1), "ratio -0.1"),
        ((4, 0.3, "first"), "weight"),
    ],
)
def test_settings_that_are_none(setting, words):
    with pytest.raises(UserError, match=words):
        Setting(*setting)


def test_a_point_has_superposition_and_positive_sizes():
    with pytest.raises(UserError, match="no superposition"):
        Point(1e6, 1e9, 1000, Setting(1, 0.0), 0.1, "mine")
    with pytest.raises(UserError, match="positive"):
        Point(1e6, 0, 1000, Setting(4, 0.3), 0.1, "mine")


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (999, "999"), (1e3, "1k"), (41.94e9, "41.9B"), (1e12, "1T")])
def test_large_numbers_in_three_digits(number, text):
    assert short(number) == text
