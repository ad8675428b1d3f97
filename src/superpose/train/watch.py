"""What watches a run: its loss, the way to a baseline, the switch, energy, the profiler, and trackers of metrics.

`superpose.train.loop.train` names those that a run has.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from superpose.errors import UserError
from superpose.train.records import Energy, Record, Result, Switch, Training, Validation, read_records
from superpose.train.running import Watcher
from superpose.train.step import StepResult

# Watts of a processor core at work, where nothing measures them: server processors are rated at 3 to 12 a core.
_WATTS_PER_CORE = 8.0
# Of a stage's steps: after so many, so many are traced.
_SKIPPED, _TRACED = 2, 3


class LossWatch(Watcher):
    """Warns of a fresh model that does not guess; stops a run whose loss is no number or has run away.

    A fresh model's loss is log V in both phases. Anything else means that the parts are wired wrongly. A loss has run
    away if it is more than `allowed` nats (0 for any) above its lowest in this phase and at this bag size, three
    records in a row.
    """

    PATIENCE = 3

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._phase = ""
        self._lowest: dict[int, float] = {}  # by bag size: losses of different bags are no one quantity
        self._above = 0
        self.since = 0
        """Step of the last record on course."""

    def after_step(self, done: int, result: StepResult) -> None:
        if done > 1 or not self.run.recipe.starts_at_log_v:
            return
        loss, expected = float(self.run.ranks.mean(result.loss)), math.log(self.run.store.vocab_size)
        if abs(loss - expected) > 0.2 * expected:
            found = f"the first loss is {loss:.2f}, a fresh model's is log(vocabulary) = {expected:.2f}"
            self.run.warn(1, f"{found}; check the model's initialisation before trusting this run")

    def before_record(self, record: Record) -> Record:
        if not all(math.isfinite(value) for value in astuple(record) if isinstance(value, float)):
            raise self._stopped(f"the loss or its gradient is no longer finite at step {record.step}", record.step)
        return record

    def after_record(self, record: Record) -> None:
        if isinstance(record, Training) and self.leaves(record):
            raise self._stopped(
                f"the loss has run away: {record.measured_loss:.3f} at step {record.step}, more than train.runaway = "
                f"{self._allowed} above its lowest",
                self.since,
            )

    def leaves(self, record: Training) -> bool:
        """Whether a record is the third in a row that is more than the allowed nats above the lowest."""
        loss = record.measured_loss
        if record.phase != self._phase:
            self._phase, self._lowest, self._above = record.phase, {}, 0
        lowest = self._lowest[record.bag_size] = min(loss, self._lowest.get(record.bag_size, math.inf))
        if not self._allowed or loss <= lowest + self._allowed:
            self._above, self.since = 0, record.step
            return False
        self._above += 1
        return self._above >= self.PATIENCE

    def _stopped(self, problem: str, good_at: int) -> UserError:
        """To raise on all ranks; `good_at` is the last step whose loss was good."""
        run = self.run
        run.checkpoints.wait()
        good = run.checkpoints.newest_before(good_at)
        where = f"the last good checkpoint is {good}; " if good else ""
        advice = "lower train.lr or raise train.warmup_steps, and start again in a new directory"
        return run.ranks.shared_error(f"{run.path}: {problem}; {where}{advice}")


class Baseline(Watcher):
    """Says in each validation where the run passes a baseline, or may; `reference` is empty for none."""

    def __init__(self, reference: Sequence[Validation]) -> None:
        self._reference = reference

    def started(self) -> None:
        self._ours = read_records(self.run.path / "metrics.jsonl", Validation)
        self._switched = self.run.recipe.schedule.recovers_at

    def before_record(self, record: Record) -> Record:
        if not isinstance(record, Validation):
            return record
        self._ours.append(record)
        passing: dict[str, Any] = crossing(self._ours, self._reference, self._switched)
        return replace(record, **passing)


def crossing(ours: Sequence[Validation], baseline: Sequence[Validation], switched: int) -> dict[str, int]:
    """Compares the validations of a run since step `switched`, the first of recovery, with a baseline's at equal FLOPs.

    Between its validations the baseline's loss is taken as linear. Returns the step at which the run's came to lie
    under it, as `crossed`; else that at which it may, as `crossing_forecast`; nothing where the gap does not close, or
    there are fewer than two validations since the switch. A forecast is what a straight line through the gaps over the
    logarithm of the steps since the switch says of a curve; believe it for a little way ahead.
    """
    if not baseline:
        return {}
    flops, losses = [record.flops for record in baseline], [record.val_loss for record in baseline]
    mine = [record for record in ours if record.step > switched and flops[0] <= record.flops <= flops[-1]]
    gaps = [record.val_loss - float(np.interp(record.flops, flops, losses)) for record in mine]
    under = next((record.step for record, gap in zip(mine, gaps, strict=True) if gap <= 0), None)
    if under is not None:
        return {"crossed": under}
    if len(gaps) < 2:
        return {}
    # The latest half: a curve is straight for as long as one does not look at all of it.
    recent = max(2, len(gaps) // 2)
    places = [math.log(record.step - switched) for record in mine[-recent:]]
    slope, height = map(float, np.polyfit(places, gaps[-recent:], 1))
    if slope >= 0:
        return {}
    return {"crossing_forecast": switched + round(math.exp(min(-height / slope, 50.0)))}


class SwitchSpike(Watcher):
    """Says in the result how the run took the switch."""

    def before_finish(self, result: Result) -> Result:
        path = self.run.path / "metrics.jsonl"
        return replace(result, switch=switch(read_records(path, Training), read_records(path, Validation)))


def switch(records: Sequence[Training], validations: Sequence[Validation] = ()) -> Switch | None:
    """The last change from bags to single tokens in a run's records; None where there is none."""
    after = next((i for i, record in enumerate(records) if record.phase == "recovery"), len(records))
    if not 0 < after < len(records):
        return None
    step, bag_loss = records[after - 1].step, records[after - 1].measured_loss
    recovered = next((record.step for record in records[after:] if record.measured_loss <= bag_loss), None)
    spike = records[after].measured_loss - bag_loss
    val_loss = next((record.val_loss for record in validations if record.step == step), None)
    return Switch(step, bag_loss, spike, None if recovered is None else recovered - step, val_loss)


class EnergyMeter(Watcher):
    """Says in the result what this machine took from now on, measured by codecarbon where that is installed.

    codecarbon reads the counters of processors and GPUs where the machine lets it. Without it, or where it finds no
    counter, the figure is an estimate from rated power and says so.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.perf_counter()
        self._tracker: Any = None
        try:
            from codecarbon import OfflineEmissionsTracker
        except ImportError:
            return
        # The country matters for emissions alone, which are not reported.
        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, log_level="critical", allow_multiple_runs=True
        )
        self._tracker.start()

    def before_finish(self, result: Result) -> Result:
        return replace(result, energy=self.spent())

    def closed(self) -> None:
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None

    def spent(self) -> Energy:
        """What was taken so far; it ends the measurement."""
        hours = (time.perf_counter() - self._started) / 3600
        if self._tracker is not None:
            tracker = self._tracker
            self.closed()
            counters = str(tracker._hardware).lower()
            measured = self._device.type == "cuda" or any(name in counters for name in ("rapl", "powermetrics"))
            how = "measured" if measured else "estimated from load and rated power"
            return Energy(tracker.final_emissions_data.energy_consumed, hours, how)
        if self._device.type != "cpu":
            return Energy(None, hours, "unknown; install superpose[energy]")
        cores = torch.get_num_threads()
        how = f"estimated: {cores} cores at {_WATTS_PER_CORE:.0f} W; superpose[energy] may measure it"
        return Energy(cores * _WATTS_PER_CORE * hours / 1000, hours, how)


class Profile(Watcher):
    """Writes RUN/profile/step-N-rank-R.json, which open in Perfetto or chrome://tracing.

    Steps are traced after the start of each stage, and after the run was started or resumed.
    """

    _tracing: profile | None = None

    def after_step(self, done: int, result: StepResult) -> None:
        stages = {self.run.progress.step, *self.run.recipe.schedule.boundaries}
        if self._tracing is not None and done - _SKIPPED - _TRACED in stages:
            self._tracing.stop()
            folder = self.run.path / "profile"
            folder.mkdir(exist_ok=True)
            self._tracing.export_chrome_trace(str(folder / f"step-{done:08d}-rank-{self.run.ranks.rank}.json"))
            self._tracing = None
        elif self._tracing is None and done - _SKIPPED in stages:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._tracing = profile(activities=activities)
            self._tracing.start()

    def closed(self) -> None:
        if self._tracing is not None:
            self._tracing.stop()


class Trackers(Watcher):
    """Tells TensorBoard, Weights & Biases or trackio of every record; "auto" for TensorBoard if it is installed.

    TensorBoard writes to the run's `tensorboard/`, the others take the name of its directory.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self._board: Any = None
        self._services: list[Any] = []

    def started(self) -> None:
        path, wanted = self.run.path, self._wanted
        if wanted == "auto":
            wanted = ["tensorboard"] if find_spec("tensorboard") else []
        for name in wanted:
            if find_spec(name) is None:
                raise UserError(f"train.track: {name} is not installed; pip install {name}")
        for name in wanted:
            if name == "tensorboard":
                self._board = import_module("torch.utils.tensorboard").SummaryWriter(str(path / "tensorboard"))
                continue
            service = import_module(name)
            # The same id again goes on with the same curves when a run is resumed; trackio does so by the name.
            own = {"id": path.name, "dir": str(path)} if name == "wandb" else {}
            config = self.run.recipe.model_dump(mode="json")
            service.init(project="superpose", name=path.name, resume="allow", config=config, **own)
            self._services.append(service)

    def after_record(self, record: Record) -> None:
        numbers = curves(record)
        for service in self._services:
            service.log(numbers, step=record.step)
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, record.step)

    def closed(self) -> None:
        if self._board is not None:
            self._board.close()
        for service in self._services:
            service.finish()


def curves(record: Record) -> dict[str, float]:
    """The numbers of a record, named `kind/name`."""
    values = record.as_json()
    for source, loss in values.pop("val_loss_by_source", {}).items():
        values[f"val_loss_by_source/{source}"] = loss
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return {f"{record.kind}/{name}": value for name, value in numbers.items() if name != "step"}
