import pytest

from superpose.runs.forecast import Forecast, Planned, forecast
from superpose.runs.pool import Run, _planned
from superpose.train.records import Pace
from tests.train.test_loop import changed


def pace(seconds):
    return Pace(step=5, step_seconds=seconds, validation_seconds=1.0)


def test_all_runs_share_the_machine(recipe):
    """8 runs of 20 steps at 2 s and 4 validations at 1 s, two at a time; one of them has 15 steps of another's."""
    runs = [Planned(recipe)] * 7 + [Planned(recipe, shared=15)]
    seconds = (7 * (40 + 4) + (10 + 1)) / 2
    said = "8 runs of 145 steps in all, 2 at a time, of about 2.0 s: about"
    assert forecast(runs, 2, [pace(1.0), pace(3.0)]) == f"{said} {seconds / 60:.1f} min"


def test_no_more_at_a_time_than_the_longest_takes(recipe):
    long = changed(recipe, "train", steps=400, eval_every=1000)
    assert forecast([Planned(recipe), Planned(long)], 2, [pace(1.0)]).endswith(f"about {(400 + 6) / 60:.1f} min")


def test_one_run_is_one(recipe):
    assert forecast([Planned(recipe)], 1, [pace(1.0)]) == "1 run of 20 steps in all of about 1.0 s: about 24 s"


def training(step, seconds):
    return {"kind": "training", "step": step, "seconds": seconds}


def test_the_line_is_said_once_by_steps_that_all_at_work_took_together(recipe):
    """Steps of 4 s beside the start of another, then of 2 s: 5 runs of 20 steps and of 4 validations, at 1 s now."""
    said = []
    heard = Forecast(dict.fromkeys("abcde", Planned(recipe)), 2, said.append)
    told = Pace(step=5, step_seconds=4.0, validation_seconds=2.0).as_json()
    for name, record in (("a", {"kind": "validation", "step": 0}), ("a", told), ("a", training(10, 40.0))):
        heard.hear(name, record)
    for name, record in (("a", training(11, 44.0)), ("b", told)):
        heard.hear(name, record)
    assert said == []
    for step, seconds in ((12, 46.0), (13, 48.0)):
        for name in "ab":
            heard.hear(name, training(step, seconds))
    heard.hear("c", told)
    heard.hear("c", {"kind": "result"})
    assert said == ["5 runs of 100 steps in all, 2 at a time, of about 2.0 s: about 1.8 min"]


def test_of_long_steps_no_more_are_waited_for(recipe):
    said, now = [], 0.0
    heard = Forecast({"a": Planned(recipe)}, 1, said.append, lambda: now)
    heard.hear("a", pace(50.0).as_json())
    assert said == []
    now = 61.0
    heard.hear("a", training(10, 500.0))
    assert said[0].startswith("1 run of 20 steps in all of about 50 s")


def test_what_is_left_follows_the_records(recipe):
    """20 steps at 2 s and 4 validations at 1 s are 44 s; five of them, two at a time. Validations slow down too."""
    heard = Forecast(dict.fromkeys("abcde", Planned(recipe)), 2, lambda line: None)
    assert heard.left() is None
    heard.hear("a", {**pace(2.0).as_json(), "step": 0})
    assert heard.left() == pytest.approx(5 * 44 / 2)
    heard.hear("a", {"kind": "training", "step": 5, "seconds": 10.0})
    assert heard.left() == pytest.approx(95 * 2.2 / 2)
    heard.hear("a", {"kind": "training", "step": 10, "seconds": 30.0})  # twice as slow
    assert heard.left() == pytest.approx(90 * 4.4 / 2)
    for name in "abc":
        heard.hear(name, {"kind": "failure", "message": "died"})
    assert heard.left() == pytest.approx(40 * 4.4 / 2)
    heard.hear("d", {"kind": "result"})
    assert heard.left() == pytest.approx(20 * 4.4)  # nothing is beside the last
    heard.hear("e", {"kind": "result"})
    assert heard.left() == 0


def test_a_cluster_that_grew_is_counted_by_the_runs_at_work(recipe):
    heard = Forecast(dict.fromkeys("abcde", Planned(recipe)), 1, lambda line: None)
    for name in "abc":
        heard.hear(name, {**pace(2.0).as_json(), "step": 0})
    assert heard.left() == pytest.approx(5 * 44 / 3)
    heard.hear("a", {"kind": "failure", "message": "died"})
    assert heard.left() == pytest.approx(4 * 44 / 2)


def test_a_run_that_ends_first_is_enough(recipe):
    said = []
    heard = Forecast(dict.fromkeys("abcde", Planned(recipe)), 2, said.append)
    heard.hear("a", pace(1.0).as_json())
    heard.hear("a", {"kind": "result"})
    assert len(said) == 1


def test_what_is_finished_is_left_out_and_what_is_shared_counts_once(recipe, store, tmp_path):
    ordinary = recipe.ordinary()
    runs = [Run("ordinary", changed(ordinary, "train", steps=steps, eval_every=10)) for steps in (20, 40, 80)]
    runs.append(Run("tst", recipe))
    finished = tmp_path / runs[0].key(store)
    finished.mkdir()
    (finished / "result.json").write_text("{}")
    planned = _planned([*runs, runs[-1]], store, tmp_path)
    assert [(run.recipe.train.steps, run.shared) for run in planned.values()] == [(40, 18), (80, 36), (20, 0)]
