import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from superpose.errors import UserError
from superpose.train import trackers
from superpose.train.records import Training, Warned
from superpose.train.trackers import Trackers, curves

RECORD = Training(step=7, phase="recovery", bag_size=1, loss=2.5, lr=1e-3)
CURVES = {"training/loss": 2.5, "training/lr": 1e-3, "training/bag_size": 1}


def opened_trackers(wanted, run, settings=None):
    opened = Trackers(wanted)
    opened.run = SimpleNamespace(path=run, recipe=SimpleNamespace(model_dump=lambda mode: settings or {}))
    opened.started()
    return opened


def test_numbers_become_curves():
    assert curves(RECORD) == CURVES
    assert curves(Warned(step=1, message="careful")) == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_every_number(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    opened = opened_trackers("auto", tmp_path)
    opened.after_record(RECORD)
    opened.after_record(replace(RECORD, step=8, loss=2.25))
    opened.closed()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert set(read.Tags()["scalars"]) == set(CURVES)
    assert [(event.step, event.value) for event in read.Scalars("training/loss")] == [(7, 2.5), (8, 2.25)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_are_told_the_same(tmp_path, monkeypatch, name):
    """Neither is installed for the tests; their functions are recorded."""
    calls = []
    module = SimpleNamespace(
        log=lambda numbers, step: calls.append((numbers, step)), finish=lambda: calls.append("finished")
    )
    module.init = lambda **settings: calls.append(settings) or module
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trackers, "find_spec", lambda wanted: wanted)
    opened = opened_trackers((name,), tmp_path / "run", {"train": {"lr": 1}})
    opened.after_record(RECORD)
    opened.closed()
    settings, *rest = calls
    assert settings["name"] == "run"
    assert settings["config"] == {"train": {"lr": 1}}
    assert settings["resume"] == "allow"
    assert rest == [(CURVES, 7), "finished"]


def test_one_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        opened_trackers(("wandb",), tmp_path)
    opened_trackers("auto", tmp_path).closed()
    assert not list(tmp_path.iterdir())
