import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.errors import UserError
from superpose.results.charts import AXES, Chart, Series
from superpose.results.curves import Losses, captioned, mean_series, read_series, switch_marks, training_charts, zoomed
from superpose.train.records import Training, read_records


def logged(directory, records):
    """A run's metrics.jsonl of (step, bag size, loss)."""
    lines = [
        {"kind": "training", "step": step, "phase": "", "bag_size": s, "raw_tokens": s * step, "latents": step}
        | ({"loss": loss} if s == 1 else {"bag_loss": loss})
        for step, s, loss in records
    ]
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


def test_a_curve_begins_with_the_untrained_model(run):
    series = read_series(run, "one")
    assert series.x["step"] == [0, 8, 10, 20]
    assert set(series.x) == set(AXES)
    assert series.y[0] > series.y[-1]


def test_the_switch_is_where_bags_end_on_every_axis(run, recipe):
    ((places, label),) = switch_marks(run, recipe.schedule)
    assert label == "recovery begins"
    assert places["step"] == 8
    assert places["raw_tokens"] == 8 * 4 * 4 * 16
    assert set(places) == set(AXES)


@pytest.mark.error(n=7)
def test_losses_of_bags_and_of_tokens_share_no_chart_and_no_line(run):
    tokens, bags = training_charts([Losses(run, "one")], ())
    records = read_records(run / "metrics.jsonl", Training)
    for chart, size, name in ((tokens, 1, "loss"), (bags, 4, "bag_loss")):
        (series,) = chart.series
        told = {record.step: getattr(record, name) for record in records if record.bag_size == size}
        assert dict(zip(series.x["step"], series.y, strict=True)) == told
        assert "never compare" in chart.caption
    assert "next-token" in tokens.y_title
    assert "next-bag" in bags.y_title


def test_stages_of_bags_are_lines_of_their_own_and_draws_of_sizes_too(tmp_path):
    logged(tmp_path, [(1, 8, 6.0), (2, 4, 5.0), (3, 8, 5.5), (4, 4, 4.5), (5, 1, 4.0)])
    tokens, bags = training_charts([Losses(tmp_path, "one")], ())
    assert {one.name: (one.x["step"], one.y) for one in bags.series} == {
        "one, bags of 8": ([1, 3], [6.0, 5.5]),
        "one, bags of 4": ([2, 4], [5.0, 4.5]),
    }
    assert "differ in size" in bags.caption
    assert tokens.series[0].y == [4.0]


def test_without_bags_there_is_no_chart_of_them(tmp_path):
    (tokens,) = training_charts([Losses(logged(tmp_path, [(1, 1, 6.0), (2, 1, 5.0)]), "one")], ())
    assert "bag" not in tokens.caption
    assert training_charts([Losses(logged(tmp_path, []), "one")], ()) == []


@given(steps=st.lists(st.integers(1, 50), min_size=1, max_size=700))
def test_many_records_become_few_points_of_the_same_mean(steps, tmp_path_factory):
    directory = tmp_path_factory.mktemp("long")
    ends = np.cumsum(steps)
    losses = 3 + np.sin(ends)
    logged(directory, [(int(end), 1, float(loss)) for end, loss in zip(ends, losses, strict=True)])
    ((series,),) = (chart.series for chart in training_charts([Losses(directory, "one")], ()))
    assert len(series.y) <= 150
    weights = np.diff([0, *series.x["step"]])
    assert np.average(series.y, weights=weights) == pytest.approx(np.average(losses, weights=steps))
    assert series.x["step"][-1] == ends[-1]


lines = st.lists(
    st.builds(
        lambda name, role, y, thin: Series(name, {"step": [10.0 * n for n in range(len(y))]}, y, role, thin=thin),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["ordinary", "tst", "other"]),
        st.lists(st.floats(0, 20), min_size=1, max_size=30),
        st.just(False),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one.name,
)


@given(lines)
def test_a_picture_shows_where_every_line_ends_and_its_caption_says_what_it_does_not_show(series):
    shown = zoomed(series)
    said = captioned(Chart("", "", {}, tuple(series), y_range=shown), "").caption
    above = {} if shown is None else {one.name for one in series if max(one.y) > shown[1]}
    named = re.findall(r"(?:picture: |; )([a-h]) ", said)
    assert set(named) == set(above)
    if shown is not None:
        assert all(shown[0] < one.y[-1] < shown[1] for one in series)
        assert min(min(one.y) for one in series) > shown[0]


def test_a_curve_of_few_points_is_shown_whole():
    ordinary = Series("ordinary", {"step": [0.0, 300.0]}, [7.0, 5.0], "ordinary")
    assert zoomed([ordinary]) is None
    longer = Series("ordinary", {"step": [0.0, 100.0, 200.0, 300.0]}, [7.0, 6.0, 5.5, 5.0], "ordinary")
    low, high = zoomed([longer])
    assert low < 5.0
    assert 6.0 < high < 7.0


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["one: recovery begins"], "A dotted line is the switch: bags end and single tokens begin."),
        (["next stage", "recovery begins"], "Dotted lines are the ends of stages; where recovery begins, single"),
        (["next stage"], "Dotted lines are the ends of stages."),
        ([], ""),
    ],
    ids=["switch", "stages", "stages of bags alone", "none"],
)
def test_a_caption_says_what_the_marks_are(labels, says):
    said = captioned(Chart("", "", {}, (), tuple(({}, label) for label in labels)), "Said.").caption
    assert said.startswith(f"Said. {says}".strip())
    assert ("otted" in said) == bool(labels)


def test_seeds_that_share_no_step_have_no_mean():
    one, other = (Series("a", {axis: [step] for axis in AXES}, [3.0]) for step in (1.0, 2.0))
    with pytest.raises(UserError, match="different steps"):
        mean_series([one, other], "a")
