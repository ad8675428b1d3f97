import re

import pytest

from superpose.compare.charts import all_charts, budgets, curves, gains, seeds, speedups, training
from superpose.compare.experiment import ORDINARY, TST
from superpose.train.records import Training, read_records
from tests.compare.test_comparison import made_up


@pytest.fixture(scope="module")
def several(recipe):
    """Three seeds; TST's loss is reached by ordinary training at once, between budgets, and never."""
    losses = {
        (ORDINARY, 10): [4.0, 4.1, 4.2],
        (ORDINARY, 20): [3.5, 3.6, 3.7],
        (ORDINARY, 40): [3.0, 3.1, 3.2],
        (TST, 10): [4.5, 4.6, 4.7],
        (TST, 20): [3.2, 3.4, 3.3],
        (TST, 40): [2.5, 2.6, 2.7],
    }
    return made_up(recipe, losses)


def test_both_curves_are_drawn_from_the_untrained_model_to_the_end(compared):
    chart = curves(compared[1])
    means = {one.role: one for one in chart.series if not one.thin and one.role != "other"}
    assert means["ordinary"].x["step"] == [0, 10, 20]
    assert means["tst"].x["step"] == [0, 8, 10, 20]
    assert {one.role for one in chart.series if one.thin} == {"ordinary", "tst"}
    if chart.y_range is not None:
        assert all(one.y[-1] < chart.y_range[1] for one in means.values())


def test_the_switch_is_marked_wherever_it_has_a_place(compared):
    for chart in all_charts(compared[1]):
        inside_of_a_run = "raw_tokens" in chart.axes
        assert [places["step"] for places, _ in chart.marks] == [8.0] * inside_of_a_run
        assert ("dotted line" in chart.caption) == inside_of_a_run
        for places, _ in chart.marks:
            assert set(chart.axes) <= set(places)


def test_the_caption_of_the_curves_says_what_tst_did_at_the_switch(compared):
    chart = curves(compared[1])
    (tst,) = (one for one in chart.series if one.role == "tst" and not one.thin)
    before, after = re.search(r"bags at ([\d.]+) nats and was at ([\d.]+) after 2 more steps", chart.caption).groups()
    assert (before, after) == (f"{tst.y[1]:.2f}", f"{tst.y[2]:.2f}")


@pytest.mark.error(n=7)
def test_training_losses_are_of_one_seed_and_bags_stand_apart(compared):
    tokens, bags = training(compared[1])
    assert "seed 1" in tokens.caption
    (ordinary,) = (one for one in tokens.series if one.role == "ordinary")
    run = next(run for run in compared[1].runs if (run.arm, run.steps, run.seed) == (ORDINARY, 20, 1))
    told = read_records(run.directory / "metrics.jsonl", Training)
    assert ordinary.y == [record.loss for record in told]
    (tst,) = (one for one in tokens.series if one.role == "tst")
    assert min(tst.x["step"]) > 8
    assert all(max(one.x["step"]) == 8 and "bags of 4" in one.name for one in bags.series)


def test_speedups_are_those_of_the_table_and_what_is_left_out_is_named(several):
    chart = speedups(several)
    (series,) = chart.series
    found = several.equal_loss(20)
    assert (series.x["step"], series.y) == ([20.0], [found.ratio])
    assert (series.low, series.high) == ([found.low], [found.high])
    assert chart.level == 1.0
    assert chart.shown[0] < 1.0 < chart.shown[1]
    assert "at 10 steps (before the first budget)" in chart.caption
    assert "at 40 steps (beyond the last budget)" in chart.caption


def test_an_interval_with_one_end_is_drawn_with_one_end(recipe):
    losses = {(ORDINARY, 20): [3.5, 3.5], (ORDINARY, 40): [3.0, 3.0], (TST, 20): [3.4, 2.99]}
    chart = speedups(made_up(recipe, losses))
    (series,) = chart.series
    assert series.high == [None]
    assert series.low[0] is not None
    assert "without an end" in chart.caption


def test_without_an_answer_there_is_no_chart_of_speedups(recipe):
    losses = {(ORDINARY, 20): [3.5], (ORDINARY, 40): [3.0], (TST, 20): [2.0]}
    assert speedups(made_up(recipe, losses)).series == ()
    assert speedups(made_up(recipe, {(ORDINARY, 20): [3.5], (TST, 20): [2.0]})).series == ()


def test_captions_count_what_there_is(several, recipe):
    assert "lower on 3 of 3 seeds" in seeds(several).caption
    assert "as at 2 of 3 budgets" in gains(several).caption
    excluding = sum(several.equal_flops(n).excludes_zero for n in (10, 20, 40))
    assert f"leaves out the line at {excluding} of 3" in gains(several).caption
    alone = made_up(recipe, {(arm, n): [3.0 - n / 99] for arm in (ORDINARY, TST) for n in (20, 40)})
    assert "no bars" in gains(alone).caption
    assert "Bars" not in budgets(alone).caption
    assert "Bars reach" in budgets(several).caption
