import time

import pytest

from superpose.train import loop
from superpose.train.forecast import forecast, seconds_of, spoken_seconds
from superpose.train.records import Pace
from tests.train.test_loop import changed


@pytest.mark.parametrize(
    ("done", "validations"), [(0, [0, 8, 10, 20]), (5, [8, 10, 20]), (8, [10, 20]), (19, [20]), (20, [])]
)
def test_what_is_left_of_a_run_is_its_steps_and_its_validations(recipe, done, validations):
    pace = Pace(step=5, step_seconds=2.0, validation_seconds=100.0)
    assert seconds_of(recipe, pace, done) == 2.0 * (20 - done) + 100.0 * len(validations)
    assert seconds_of(recipe, Pace(step=5, step_seconds=2.0), done) == 2.0 * (20 - done)


def test_a_run_tells_its_pace_once_and_does_not_write_it_down(recipe, store, tmp_path, monkeypatch):
    """A step that takes a while, and checkpoints and validations that lie between: the steps alone count."""
    step, validate = loop.optimizer_step, loop.validate
    monkeypatch.setattr(loop, "optimizer_step", lambda *of: (time.sleep(0.05), step(*of))[1])
    monkeypatch.setattr(loop, "validate", lambda *of: (time.sleep(0.2), validate(*of))[1])
    heard = []
    short = changed(recipe, "train", steps=8, eval_every=4, checkpoint_every=3)
    loop.train(short, store, tmp_path / "run", listener=heard.append)
    (told,) = (record for record in heard if record["kind"] == "pace")
    pace = Pace.heard(told)
    assert pace.step == 5
    assert 0.05 <= pace.step_seconds < 0.2
    assert pace.validation_seconds >= 0.2
    assert "pace" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert forecast(short, Pace(step=5, step_seconds=30.0, validation_seconds=60.0)).endswith("about 2.5 min")


def test_times_have_the_unit_that_suits_them():
    spoken = [spoken_seconds(seconds) for seconds in (0.0491, 1.25, 42.4, 90, 5400, 200_000)]
    assert spoken == ["49 ms", "1.2 s", "42 s", "1.5 min", "1.5 h", "2.3 d"]
