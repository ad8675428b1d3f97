"""What the evidence says, what it said of points it had not seen, and what it will not say."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpose.plan.evidence import (
    LATENTS_PER_STEP,
    RULE,
    SMALL_RULE,
    Point,
    Setting,
    measured_points,
    published_points,
)
from superpose.plan.prediction import (
    few_steps,
    fit,
    fit_law,
    level_settings,
    line_at,
    of_small,
    predict,
    published_law,
    step_limits,
)

ROOT = Path(__file__).parents[2]
FIGURES = json.loads((ROOT / "benchmarks" / "results" / "evidence.json").read_text())
SMALL = measured_points()[0].params


def in_paper(params=600e6, latents=42e9, setting=RULE, own=()):
    return predict(params, latents, round(latents / LATENTS_PER_STEP), setting, own)


def test_a_law_that_is_known_is_found():
    cells = list(itertools.product(range(2, 9), (0.1, 0.2, 0.3, 0.4, 0.6)))
    points = [
        Point(n, d, 20_000, Setting(s, r), 0.3 * (d / n) ** -0.25 * (1 - math.exp(-s * r)), f"{n:g} {d:g}")
        for n, d in ((1e8, 1e10), (3e8, 4e10), (1e9, 1e10), (3e9, 4e10))
        for s, r in cells
    ]
    law = fit_law(points)
    assert law.slope == pytest.approx(-0.25)
    assert law.error == pytest.approx(0, abs=1e-6)
    gain, _ = law.at(2e9, 2e10, Setting(5, 0.2))
    assert gain == pytest.approx(0.3 * 10**-0.25 * (1 - math.exp(-1)))


def test_scales_that_deviate_widen_the_interval():
    generator = np.random.default_rng(0)
    cells = list(itertools.product(range(2, 9), (0.1, 0.2, 0.3)))
    points = [
        Point(n, 1e10, 20_000, Setting(s, r), 0.1 * factor * (1 - math.exp(-s * r)), f"{n:g}")
        for n, factor in zip(np.geomspace(1e8, 1e9, 8), np.exp(0.2 * generator.normal(size=8)), strict=True)
        for s, r in cells
    ]
    assert 0.1 < fit_law(points).error < 0.4


@pytest.mark.parametrize(("whose", "split"), [(w, s) for w, splits in FIGURES["left_out"].items() for s in splits])
def test_points_that_were_left_out_are_within_their_intervals(whose, split):
    assert FIGURES["left_out"][whose][split]["coverage"] >= 0.9


@pytest.mark.parametrize(("whose", "split"), [("the paper", "sweep"), ("the paper", "scale"), ("ours", "steps"),
                                              ("ours", "text")])  # fmt: skip
def test_errors_are_no_larger_than_those_of_the_model_before(whose, split):
    assert FIGURES["left_out"][whose][split]["rmse"] <= FIGURES["response_model"][whose][split]["rmse"]


def test_the_committed_figures_are_those_of_the_code():
    law = published_law()
    assert FIGURES["law"] == pytest.approx(
        {"intercept": law.intercept, "slope": law.slope, "error": law.error, "scales": law.scales}
    )
    scale = (3e9, 20_000 * LATENTS_PER_STEP)
    unseen = fit_law([point for point in published_points() if point.scale != scale])
    gain, half = unseen.at(*scale, RULE)
    assert abs(gain - 0.132) < half


def test_it_falls_with_latents_per_parameter_where_the_paper_is():
    for low, high in itertools.pairwise(np.geomspace(42e9, 93e9, 8)):
        assert in_paper(600e6, low).gain > in_paper(600e6, high).gain
    for small, large in itertools.pairwise(np.geomspace(270e6, 3e9, 8)):
        assert in_paper(small).gain < in_paper(large).gain


def test_it_rises_with_steps_where_our_own_are():
    found = [of_small(measured_points(), steps, SMALL_RULE) for steps in (1000, 2000, 4000, 8000, 16_000, 32_000)]
    for less, more in itertools.pairwise(found):
        assert less.gain < more.gain
        assert less.speedup[1] < more.speedup[1]


def test_our_own_recipe_is_predicted_as_it_was_measured():
    found = predict(SMALL, 8000 * 512.0, 8000, SMALL_RULE)
    for gain, times in ((0.0356, 1.38), (0.0619, 1.42)):
        assert found.low < gain < found.high
        assert found.gain == pytest.approx(gain, abs=0.016)
        assert found.speedup[0] < times < found.speedup[2]
        assert found.speedup[1] == pytest.approx(times, rel=0.05)


def test_a_sweep_at_few_steps_is_read_between_its_cells():
    assert of_small(measured_points(), 2000, Setting(8, 0.5)).gain == pytest.approx(-0.058, abs=0.001)
    assert -0.16 < of_small(measured_points(), 2000, Setting(8, 0.6)).gain < -0.06
    assert of_small(measured_points(), 2000, Setting(32, 0.5)).gain is None
    assert of_small(measured_points(), 8000, Setting(8, 0.5)).gain is None


@pytest.mark.parametrize(
    ("params", "latents", "setting", "words"),
    [
        (1e9, 500e6, RULE, "500M latents: the paper has 41.9B to 210B"),
        (1e9, 1e12, RULE, "1T latents"),
        (70e9, 1e12, RULE, "70B parameters: the paper has 270M to 3B"),
        (124e6, 42e9, RULE, "124M parameters"),
        (3e9, 200e9, RULE, "no run of the paper is within a factor"),
        (600e6, 42e9, Setting(20, 0.3), "s 2 to 16"),
        (600e6, 42e9, Setting(6, 0.05), "r 0.1 to 0.9"),
    ],
)
def test_outside_of_the_evidence_there_is_no_number(params, latents, setting, words):
    found = in_paper(params, latents, setting)
    assert (found.gain, found.low, found.high, found.speedup) == (None, None, None, None)
    assert words in " ".join(found.why)
    assert found.nearest is not None


@settings(max_examples=200, deadline=None)
@given(st.floats(5, 12), st.floats(6, 14), st.floats(1, 7), st.integers(1, 40), st.floats(0, 0.99))
def test_a_number_has_evidence_beside_it(params, latents, steps, bag_size, ratio):
    setting = Setting(bag_size, ratio)
    found = predict(10**params, 10**latents, round(10**steps), setting)
    if found.gain is None:
        assert found.why
    elif not setting.ordinary:
        assert found.low < found.gain < found.high
        points = (*published_points(), *measured_points())
        assert any(abs(math.log10(point.params) - params) < 0.36 for point in points)
        assert any(abs(math.log10(point.steps) - steps) < 0.3 for point in points)


def test_without_superposition_it_is_the_ordinary_run():
    for setting in (Setting(1, 0.3), Setting(6, 0.0)):
        assert in_paper(setting=setting).gain == 0


def test_comparisons_of_the_users_own_take_precedence_where_they_are_near():
    own = [Point(600e6, 42e9, 20_000, RULE, -0.05, "mine", 0.01), Point(600e6, 42e9, 20_000, RULE, -0.03, "mine", 0.01)]
    found = in_paper(own=own)
    assert found.gain == pytest.approx(-0.04)
    assert found.high > -0.03
    assert "your own comparisons (mine)" in found.basis
    assert in_paper(3e9, own=own).gain == in_paper(3e9).gain
    # Where there was no evidence there is some now.
    here = [Point(100e6, 5e9, 5000, RULE, 0.06, "mine", 0.01, 1.3)]
    found = predict(110e6, 5e9, 5000, RULE, here)
    assert (found.gain, found.speedup) == (0.06, (1.3, 1.3, 1.3))


def test_a_line_and_its_interval():
    line = (0.0, 1.0, 2.0, 3.0), (0.1, 1.0, 2.1, 2.9)
    value, half = line_at(*line, 1.5)
    assert value == pytest.approx(1.525)
    assert line_at(*line, 10)[1] > 2 * half
    assert line_at((0.0, 1.0, 2.0), (0.0, 1.0, 2.0), 5) == (pytest.approx(5), pytest.approx(0, abs=1e-9))


def test_settings_that_cannot_be_told_from_the_best():
    level = level_settings(600e6, 42e9, range(2, 17), (0.1, 0.2, 0.3, 0.5, 0.9))
    assert RULE in level
    assert Setting(2, 0.1) not in level
    assert Setting(6, 0.9) not in level
    gains = [in_paper(setting=setting).gain for setting in level]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] - gains[-1] < 0.005


def test_few_steps_are_warned_of():
    assert step_limits() == (2000, 8000)
    assert few_steps(20_000, Setting(16, 0.9)) == ()
    (sentence,) = few_steps(3000, SMALL_RULE)
    assert "3,000 steps are few" in sentence
    assert "8,000 steps on" in sentence
    lost = few_steps(2000, Setting(8, 0.5))
    assert len(lost) == 2
    assert "s 4, r 0.5" in lost[1]


def test_a_fit_needs_no_error_to_be_read():
    assert fit(published_points()).slope == published_law().slope
