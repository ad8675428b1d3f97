import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.results.charts import AXES, Chart, Series, apart, draw, drawn


def labels_of(panel, renderer):
    """Where the names of an x axis' places are in the picture, from the left."""
    low, high = sorted(panel.get_xlim())
    names = zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
    boxes = [label.get_window_extent(renderer) for place, label in names if low <= place <= high and label.get_text()]
    return sorted(boxes, key=lambda box: box.x0)


@pytest.mark.parametrize("axes", [("raw_tokens",), ("flops", "raw_tokens")], ids=["one panel", "two"])
@pytest.mark.parametrize("most", [7.0, 291_840.0, 1.66e12])
def test_names_of_places_do_not_touch(axes, most):
    x = {axis: [most * share for share in (0.45, 0.6, 0.8, 1.0)] for axis in axes}
    chart = Chart("loss", "nats", {axis: AXES[axis] for axis in axes}, (Series("one", x, [4.0, 3.0, 2.5, 2.4]),))
    canvas = drawn(chart, axes)
    canvas.draw()
    for panel in canvas.figure.axes:
        boxes = labels_of(panel, canvas.get_renderer())
        assert len(boxes) >= 3
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=12, unique=True).map(sorted))
def test_names_of_budgets_do_not_touch(budgets):
    places = [float(budget) for budget in budgets]
    kept = apart(places, log=True)
    assert kept[-1] == places[-1]
    assert set(kept) <= set(places)
    share = (places[-1] / places[0]) ** 0.11
    assert all(right / left >= share * (1 - 1e-9) for left, right in itertools.pairwise(kept))


def test_a_budget_beside_another_has_no_name_of_its_own():
    series = Series("one", {"step": [1000.0, 1010.0, 2000.0]}, [3.0, 2.9, 2.5])
    canvas = drawn(Chart("loss", "nats", {"step": "steps"}, (series,), log_x=True), ("step",))
    assert [label.get_text() for label in canvas.figure.axes[0].get_xticklabels()] == ["1,010", "2,000"]


@given(
    st.floats(-5, 5),
    st.lists(st.tuples(st.floats(-5, 5), st.none() | st.floats(0, 2), st.none() | st.floats(0, 2)), min_size=1),
)
def test_a_level_and_all_bars_are_in_the_picture(level, points):
    y = [value for value, *_ in points]
    low = [None if less is None else value - less for value, less, _ in points]
    high = [None if more is None else value + more for value, _, more in points]
    chart = Chart("gain", "nats", {"step": ""}, (Series("one", {}, y, low=low, high=high),), level=level)
    bottom, top = chart.shown
    assert all(bottom < value < top for value in (level, *y, *low, *high) if value is not None)


def test_a_line_of_a_single_point_is_a_dot_and_a_bar_may_have_one_end(tmp_path):
    one = Series("one", {"step": [5.0]}, [3.0], low=[None], high=[3.5])
    chart = Chart("loss", "nats", {"step": "steps"}, (one, Series("thin", {"step": [5.0]}, [2.0], thin=True)))
    first, bar, thin = drawn(chart, ("step",)).figure.axes[0].lines
    assert first.get_marker() == thin.get_marker() == "o"
    assert list(bar.get_ydata()) == [3.0, 3.5]
    draw(chart, ("step",), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_values_of_two_lines_stand_apart():
    lines = [Series(name, {"step": [0.0, 9.0]}, [7.0, y]) for name, y in (("a", 5.001), ("b", 5.0))]
    canvas = drawn(Chart("loss", "nats", {"step": "steps"}, tuple(lines)), ("step",))
    canvas.draw()
    lower, higher = (text.get_window_extent(canvas.get_renderer()) for text in canvas.figure.axes[0].texts)
    assert lower.y1 <= higher.y0 + 1
