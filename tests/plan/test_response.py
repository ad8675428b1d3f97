"""The response model: what it finds in data of its own form, in the paper's, and what it will not say."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from superpose.compare.comparison import Comparison
from superpose.errors import UserError
from superpose.plan.evidence import OWN, PUBLISHED, Point, points_of, published_bound, published_points
from superpose.plan.response import RULE, Group, Setting, _covariance, _gain, _noise, fit
from superpose.plan.shape import FORM, Prior, Settings, effective_size, height
from superpose.plan.validation import leave_out, scale_of
from superpose.results.tables import markdown
from superpose.train.config import with_settings

ROOT = Path(__file__).parents[2]
SCALES = ((1e8, 1e10), (3e8, 4e10), (3e8, 2e11), (1e9, 4e10), (3e9, 4e10))
CELLS = tuple(product((2, 4, 8), (0.1, 0.3, 0.6)))


@pytest.fixture(scope="module")
def response():
    return fit(published_points())


@pytest.fixture(scope="module")
def by_scale():
    return leave_out(published_points(), scale_of)


def synthetic(generator, standard, scales=SCALES, cells=CELLS, deviate=True):
    """Sweeps drawn from the model itself: deviations of each scale, luck of each run."""
    points = [Point(n, d, s, r, "uniform", 0.0, f"{n:g}-{d:g}", PUBLISHED) for n, d in scales for s, r in cells]
    groups = [Group(PUBLISHED, n, d, "uniform") for n, d in scales]
    own = [generator.multivariate_normal(np.zeros(len(groups)), c) for c in _covariance(groups, groups)]
    luck = generator.multivariate_normal(np.zeros(len(points)), _noise(points))
    each = np.repeat(np.array(own) * deviate, len(cells), axis=1)
    gains = _gain(FORM, standard, Settings.of(points), each) + luck
    return [replace(point, gain=float(gain)) for point, gain in zip(points, gains, strict=True)]


def test_coefficients_that_are_known_are_found():
    generator = np.random.default_rng(0)
    standard = np.array([-0.5, 0.8, 0.5, 0.4, -0.3, 0.5, 0.6, -0.4, 0.5])
    found = fit(synthetic(generator, standard, cells=tuple(product(range(2, 17, 2), np.arange(0.1, 0.95, 0.1)))))
    for (name, prior), z in zip(FORM.priors.items(), standard, strict=True):
        value, low, high = found.coefficients[name]
        width = high - low
        assert low - width / 2 < prior.value(float(z)) < high + width / 2, name
        assert low < value < high
    # What a sweep tells, its shape, is told closely.
    for name in ("sigma", "rho", "q", "p"):
        assert found.coefficients[name][0] == pytest.approx(
            FORM.priors[name].value(standard[list(FORM.priors).index(name)]), rel=0.1
        )


def test_a_scale_that_was_not_seen_is_within_its_interval_as_often_as_it_says():
    generator, inside = np.random.default_rng(1), []
    for _ in range(60):
        points = synthetic(generator, generator.normal(size=len(FORM.priors)) * 0.3)
        unseen = generator.integers(len(SCALES))
        known = [p for p in points if (p.params, p.latents) != SCALES[unseen]]
        point = next(p for p in points if (p.params, p.latents) == SCALES[unseen] and (p.bag_size, p.ratio) == (4, 0.3))
        prediction = fit(known).predict(point.params, point.latents, 4, 0.3, setup=PUBLISHED)
        inside.append(prediction.low <= point.gain <= prediction.high)
    assert 0.8 <= np.mean(inside) <= 0.98


def test_the_papers_points_are_gains_at_equal_steps():
    points = published_points()
    assert len(points) == 460
    assert {point.source for point in points} == {"270m_20k", "270m_100k", "600m_20k", "600m_20k_power", "3b_20k"}
    assert max(point.ratio for point in points) == 0.9
    (large,) = (point for point in points if point.params == 3e9)
    assert (large.gain, large.bag_size, large.ratio, large.latents) == (0.132, 6, 0.3, 20_000 * 2**21)
    (cell,) = (p for p in points if p.source == "270m_20k" and (p.bag_size, p.ratio) == (7, 0.2))
    assert cell.gain == pytest.approx(3.2124 - 3.1393)


def test_scales_left_out_are_predicted(by_scale):
    # Measured: 0.0099, 0.0048, 0.0116, 0.0095, 0.0115.
    assert max(held.practical_rmse for held in by_scale) < 0.013
    assert np.mean([held.practical_rmse for held in by_scale]) < 0.0105
    assert min(held.coverage for held in by_scale) >= 0.9
    assert sum(held.practical_rmse < held.flat_rmse for held in by_scale) >= 4


def test_a_height_that_ignores_the_scale_fails_that_bound():
    held = leave_out(published_points(), scale_of, replace(FORM, height=lambda at, x: at["A"] * np.ones_like(x.params)))
    assert np.mean([sweep.practical_rmse for sweep in held]) > 0.02


@pytest.mark.parametrize(("largest", "beta"), [(3e9, 0.31), (6e8, 0.29)])
def test_the_exponent_is_not_its_priors(largest, beta):
    wide = replace(FORM, priors={**FORM.priors, "beta": Prior(0.0, 1.5, positive=False)})
    found = fit([point for point in published_points() if point.params <= largest], wide)
    assert found.coefficients["beta"][0] == pytest.approx(beta, abs=0.006)


def test_the_recommendation_costs_no_more_than_the_rule_within_luck(by_scale):
    sweeps = [held for held in leave_out(published_points()) if held.chosen is not None]
    assert len(sweeps) == 4
    ours = [held.chosen.nats for held in sweeps]
    rule = [next(r.nats for r in held.rules if (r.setting.bag_size, r.setting.ratio) == RULE) for held in sweeps]
    assert np.mean(ours) < np.mean(rule)
    assert max(ours) < 0.003


@pytest.mark.parametrize("weighting", ["uniform", "power"])
def test_without_superposition_there_is_no_gain(response, weighting):
    for s, r in ((1, 0.3), (6, 0.0)):
        prediction = response.predict(6e8, 4e10, s, r, weighting)
        assert (prediction.gain, prediction.low, prediction.high) == (0.0, 0.0, 0.0)
    assert abs(response.predict(6e8, 4e10, 6, 1e-6, weighting).gain) < 1e-4


def test_without_recovery_there_is_no_setting(response):
    with pytest.raises(UserError, match="recovery"):
        response.predict(6e8, 4e10, 6, 1.0)
    with pytest.raises(UserError, match="recovery"):
        response.best(6e8, 4e10, ratios=(0.3, 1.0))
    with pytest.raises(UserError, match="recovery"):
        Point(6e8, 4e10, 6, 1.0, "uniform", -3.0, "mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6e8, 4e10, 0, 0.3), "bag size"),
        ((6e8, 4e10, 6, -0.1), "ratio"),
        ((6e8, 4e10, 6, 0.3, "first"), "weighting"),
        ((0.0, 4e10, 6, 0.3), "parameters"),
    ],
)
def test_settings_that_are_none_are_refused(response, arguments, message):
    with pytest.raises(UserError, match=message):
        response.predict(*arguments)


def test_gains_move_the_way_they_must(response):
    def gain(n, d, s, r):
        return response.predict(n, d, s, r).gain

    assert gain(1e9, 2e10, 6, 0.3) > gain(1e9, 8e10, 6, 0.3) > gain(1e9, 3e11, 6, 0.3)  # less to win once well fed
    assert gain(6e8, 4e10, 8, 0.3) > gain(6e8, 4e10, 8, 0.6) > gain(6e8, 4e10, 8, 0.9)  # recovery gets short
    assert gain(6e8, 4e10, 16, 0.9) < gain(6e8, 4e10, 8, 0.9) < 0
    assert gain(6e8, 4e10, 2, 0.3) < gain(6e8, 4e10, 4, 0.3)


def test_what_is_out_of_range_is_told(response):
    inside = response.predict(6e8, 4.2e10, 6, 0.3)
    assert inside.in_range
    assert inside.why == ()
    single = response.predict(3e9, 4.2e10, 10, 0.3)
    assert single.why == ("3B parameters: the points near s 10, r 0.3 end at 600M",)
    assert response.predict(3e9, 4.2e10, 6, 0.3).in_range
    assert response.predict(6e8, 4.2e10, 32, 0.3).why == ("there is no point near s 32, r 0.3",)
    both = response.predict(1e10, 4.2e11, 6, 0.3)
    assert [sentence.split(":")[0] for sentence in both.why] == ["10B parameters", "420B latents"]
    assert not both.in_range
    short = response.predict(6e8, 4.2e10, 6, 0.3, steps=5000)
    assert "5,000 steps" in short.why[0]


def test_intervals_widen_with_distance(response):
    def relative(n, d, setup):
        prediction = response.predict(n, d, 6, 0.3, setup=setup)
        return (prediction.high - prediction.low) / prediction.gain

    assert relative(6e8, 20_000 * 2**21, PUBLISHED) < 0.2
    assert relative(6e8, 20_000 * 2**21, PUBLISHED) < relative(1e10, 7e11, PUBLISHED) < relative(1e5, 7e6, PUBLISHED)
    assert relative(6e8, 20_000 * 2**21, OWN) > 1


def test_own_points_move_predictions_around_them_and_no_others(response):
    own = [Point(1.2e8, 5e9, 6, 0.3, "uniform", 0.02, "mine", error=0.005)]
    informed = fit([*published_points(), *own])
    before, after = (model.predict(1.2e8, 5e9, 6, 0.3) for model in (response, informed))
    assert before.gain > 0.08
    assert after.gain == pytest.approx(0.02, abs=0.015)
    assert after.high - after.low < (before.high - before.low) / 2
    assert after.in_range
    assert not before.in_range
    for far in ((6e8, 20_000 * 2**21, PUBLISHED), (3e9, 20_000 * 2**21, PUBLISHED)):
        before, after = (model.predict(*far[:2], 6, 0.3, setup=far[2]) for model in (response, informed))
        assert after.gain == pytest.approx(before.gain, abs=0.002)
    before, after = (model.predict(3e9, 4.2e10, 6, 0.3) for model in (response, informed))
    assert after.gain == pytest.approx(before.gain, rel=0.15)


def test_the_advice_is_a_region_and_one_setting_of_it(response):
    advice = response.best(270e6, 20_000 * 2**21, setup=PUBLISHED)
    assert advice.setting in advice.region
    assert Setting(*RULE) in advice.region
    assert Setting(6, 0.9) not in advice.region
    assert Setting(2, 0.1) not in advice.region
    assert advice.setting.weighting == "uniform"
    assert 5 <= advice.setting.bag_size <= 10
    assert 0.1 <= advice.setting.ratio <= 0.3
    assert any("constant rule" in sentence for sentence in advice.why)
    gains = [response.predict(270e6, 20_000 * 2**21, s.bag_size, s.ratio, s.weighting).gain for s in advice.region]
    assert gains == sorted(gains, reverse=True)
    only = response.best(270e6, 4e10, bag_sizes=(4,), ratios=(0.1,), weightings=("power",))
    assert only.setting == Setting(4, 0.1, "power")
    with pytest.raises(UserError, match="no setting"):
        response.best(270e6, 4e10, bag_sizes=(1,))


def test_a_setting_that_only_loses_is_advised_against(response):
    advice = response.best(6e8, 4.2e10, bag_sizes=(10, 13), ratios=(0.9,))
    assert advice.prediction.gain < 0
    assert any("train ordinarily" in why for why in advice.why)


def test_points_unlike_any_response_are_refused():
    points = [replace(p, gain=p.gain - 0.3) for p in published_points() if p.source == "270m_20k" and p.ratio > 0.6]
    with pytest.raises(UserError, match="no response fits"):
        fit(points)


def test_losses_of_ones_own_are_believed():
    own = [Point(8.8e7, 20_000 * 32_768.0, 6, 0.3, "uniform", -0.16, "mine", error=0.01)]
    prediction = fit([*published_points(), *own]).predict(8.8e7, 20_000 * 32_768.0, 6, 0.3)
    assert prediction.gain < -0.1
    assert prediction.high < 0


def test_without_points_nothing_is_fitted():
    with pytest.raises(UserError, match="no points"):
        fit([])


def test_the_mixture_of_experts_is_above_its_bound(response):
    params, latents, s, r, bound = published_bound()
    assert (s, r, bound) == (16, 0.25, 0.016)
    assert latents == pytest.approx(0.42e12, rel=0.01)
    assert response.predict(params, latents, s, r).high > bound


def test_a_comparison_of_ones_own_gives_its_gains():
    comparison = Comparison.load(ROOT / "benchmarks" / "results" / "python-32000")
    points = points_of(comparison, "python")
    assert [point.latents / 512 for point in points] == [4000, 8000, 16000, 32000]
    last = comparison.equal_flops(32000)
    assert points[-1].gain == -last.value
    # Five seeds: an interval by Student's t at 90 %, 2.132 errors instead of 1.645.
    assert points[-1].error == pytest.approx(last.deviation / math.sqrt(5) * 2.132 / 1.645, rel=1e-3)
    assert 80_000 < points[0].params < 100_000
    assert (points[0].bag_size, points[0].ratio, points[0].setup) == (4, 0.1, OWN)
    alone = replace(comparison, runs=tuple(run for run in comparison.runs if run.seed == 1))
    assert points_of(alone)[0].error > 0
    for setting in ({"mode": "input"}, {"weighting": "first"}):
        other = replace(comparison, recipe=with_settings(comparison.recipe, "superposition", **setting))
        with pytest.raises(UserError, match="can be added"):
            points_of(other)


def test_weights_amount_to_a_smaller_bag():
    assert effective_size(7, "uniform") == pytest.approx(7)
    assert effective_size(2, "power") == pytest.approx(1.5**2 / 1.25)
    assert 1 < effective_size(8, "power") < effective_size(13, "power") < 13


def test_the_height_is_its_equation():
    at = {"A": 0.1, "beta": 0.5, "gamma": 0.5}
    row = Point(2.4e9, 2.4e9 * 280, 4, 0.1, "uniform", 0.0, "x")
    assert height(at, Settings.of([row])) == pytest.approx(0.1 / 2 * 2)


def test_the_page_shows_the_tables():
    tables = json.loads((ROOT / "benchmarks" / "results" / "response.json").read_text("utf-8"))["tables"]
    page = (ROOT / "docs" / "planning-response.md").read_text("utf-8")
    for name, (_, header, rows) in tables.items():
        assert markdown([("", tuple(header), [tuple(row) for row in rows])], "").strip() in page, name


def test_the_results_are_those_of_the_model(response, by_scale):
    saved = json.loads((ROOT / "benchmarks" / "results" / "response.json").read_text("utf-8"))
    for name, values in response.coefficients.items():
        assert saved["coefficients"][name] == pytest.approx(values, rel=1e-3, abs=1e-4)
    for held, entry in zip(by_scale, saved["leave_one_scale_out"], strict=True):
        assert held.practical_rmse == pytest.approx(entry["practical_rmse"], abs=1e-4)
