import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from superpose.errors import UserError
from superpose.train import watch
from superpose.train.loop import train
from superpose.train.records import Training, Validation, Warned
from superpose.train.watch import EnergyMeter, LossWatch, Trackers, crossing, curves, switch

CPU = torch.device("cpu")
RECORD = Training(step=7, phase="recovery", bag_size=1, loss=2.5, lr=1e-3)
CURVES = {"training/loss": 2.5, "training/lr": 1e-3, "training/bag_size": 1}


def validation(step, loss):
    return Validation(
        step=step, val_loss=loss, val_bits_per_byte=1.0, raw_tokens=step, latents=step, flops=10 * step, seconds=1.0
    )


def test_a_crossing_that_was_seen():
    baseline = [validation(step, 5 - step / 100) for step in (0, 100, 200, 300)]
    ours = [validation(100, 9.0), validation(150, 3.9), validation(180, 3.1)]
    assert crossing(ours, baseline, 120) == {"crossed": 180}


def test_a_crossing_to_come_is_read_off_the_gaps():
    """Gaps that fall linearly in the logarithm of the steps since the switch are forecast exactly."""
    baseline = [validation(step, 3.0) for step in (0, 10_000)]
    ours = [validation(100 + since, 3.0 + 0.1 * math.log(1000 / since)) for since in (10, 20, 50, 100)]
    found = crossing(ours, baseline, 100)
    assert found == {"crossing_forecast": pytest.approx(1100, abs=2)}


def test_a_gap_that_does_not_close_has_no_crossing():
    baseline = [validation(step, 3.0) for step in (0, 10_000)]
    ours = [validation(100 + since, 3.0 + 0.1 * math.log(since)) for since in (10, 20, 50)]
    assert crossing(ours, baseline, 100) == {}


def test_too_little_to_go_by():
    baseline = [validation(step, 3.0) for step in (0, 300)]
    assert crossing([validation(110, 4.0)], baseline, 100) == {}
    assert crossing([validation(110, 4.0), validation(900, 2.0)], baseline, 100) == {}, "outside the baseline"
    assert crossing([validation(110, 4.0)], [], 100) == {}


def training(step, loss, phase="recovery"):
    return Training(step=step, phase=phase, bag_size=1, **{"loss" if phase == "recovery" else "bag_loss": loss})


def test_a_loss_that_leaves_its_course():
    watching = LossWatch(2.0)
    losses = [7.0, 5.0, 6.9, 7.5, 6.0, 7.1, 7.2, 7.3]
    assert [watching.leaves(training(step, loss)) for step, loss in enumerate(losses)] == [False] * 7 + [True]
    assert watching.since == 4
    assert not any(LossWatch(0).leaves(training(step, 5.0 + step)) for step in range(20))


def test_a_new_phase_has_a_level_of_its_own():
    watching = LossWatch(2.0)
    for step in range(5):
        assert not watching.leaves(training(step, 3.0, "superposition"))
    assert not any(watching.leaves(training(step, 6.0)) for step in range(5, 10))


def test_the_spike_and_how_long_it_lasts():
    records = [
        training(10, 6.0, "superposition"),
        training(20, 5.0, "superposition"),
        training(30, 6.5),
        training(40, 5.2),
        training(50, 4.9),
    ]
    found = switch(records)
    assert (found.step, found.bag_loss, found.spike, found.steps_to_recover) == (20, 5.0, 1.5, 30)
    assert found.val_loss is None
    assert switch(records, [validation(10, 7.0), validation(20, 6.4), validation(50, 4.9)]).val_loss == 6.4
    assert switch(records[:4]).steps_to_recover is None
    assert switch(records[:2]) is None
    assert switch(records[2:]) is None


def test_energy_without_a_library_is_called_an_estimate(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    spent = EnergyMeter(CPU).spent()
    assert spent.kwh > 0
    assert spent.how.startswith("estimated")
    assert EnergyMeter(torch.device("meta")).spent().kwh is None


@pytest.mark.parametrize(("found", "how"), [("[CPU(intel_rapl)]", "measured"), ("[CPU(Cpu Load)]", "estimated")])
def test_energy_is_what_codecarbon_says(monkeypatch, found, how):
    class Tracker:
        def __init__(self, **settings):
            self._hardware = found

        def start(self):
            pass

        def stop(self):
            self.final_emissions_data = SimpleNamespace(energy_consumed=0.25)

    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))
    spent = EnergyMeter(CPU).spent()
    assert spent.kwh == 0.25
    assert spent.how.startswith(how)


def test_a_few_steps_of_each_phase_are_traced(recipe, store, tmp_path):
    train(recipe, store, tmp_path / "run", profile=True)
    traces = sorted((tmp_path / "run" / "profile").iterdir())
    assert [trace.name for trace in traces] == ["step-00000005-rank-0.json", "step-00000013-rank-0.json"]
    events = json.loads(traces[0].read_text())["traceEvents"]
    assert any("linear_multi_hot" in str(event.get("name")) for event in events)


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
    monkeypatch.setattr(watch, "find_spec", lambda wanted: wanted)
    opened = opened_trackers((name,), tmp_path / "run", {"train": {"lr": 1}})
    opened.after_record(RECORD)
    opened.closed()
    settings, *rest = calls
    assert settings["name"] == "run"
    assert settings["config"] == {"train": {"lr": 1}}
    assert settings["resume"] == "allow"
    assert rest == [(CURVES, 7), "finished"]


def test_one_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        opened_trackers(("wandb",), tmp_path)
    opened_trackers("auto", tmp_path).closed()
    assert not list(tmp_path.iterdir())
