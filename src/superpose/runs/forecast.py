"""How many runs and steps a command is about to train, and about how long that takes: one line, said early."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from superpose.train.config import Recipe
from superpose.train.forecast import seconds_of, spoken_seconds
from superpose.train.records import Pace

_ENOUGH = 4
"""Runs whose pace is waited for, where more are at work: they share the machine, so one alone would be faster."""
_SECONDS_OF_PATIENCE = 60
"""With steps so long that the next records are further away, those before had little of the start in them."""


@dataclass(frozen=True)
class Planned:
    """A run that is to be trained.

    Attributes:
        shared: steps it does not compute, because another run has them.
    """

    recipe: Recipe
    shared: int = 0


@dataclass
class Forecast:
    """Says the line as soon as the pace of the runs at work is known, and learns from all that they tell afterwards.

    The first steps of a run are timed while others still start on the same cores, which makes them up to twice as long.
    So the line goes by the first steps that all took together; what a validation took is brought down with them.

    What is done for a record takes the same time however many runs there are.

    Args:
        runs: to be trained now and later in this command by their names, not those that are finished.
        at_a_time: how many are at work together; more are counted where more are heard of, on a cluster that grew.
        say: prints a line.
        clock: seconds.
    """

    runs: Mapping[str, Planned]
    at_a_time: int
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _paces: dict[str, Pace] = field(default_factory=dict)
    _rates: dict[str, float] = field(default_factory=dict)
    _last: dict[str, tuple[int, float]] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _working: set[str] = field(default_factory=set)
    _together: float | None = None
    _said: bool = False

    def __post_init__(self) -> None:
        self._open = {name: run.recipe.train.steps - run.shared for name, run in self.runs.items()}
        self._todo, self._rate = sum(self._open.values()), 0.0

    def hear(self, name: str, record: Mapping[str, Any]) -> None:
        """Takes a record of any of the runs."""
        if name in self._open:
            self._learn(name, record)
        if self._said or not self._paces:
            return
        enough = min(_ENOUGH, self.at_a_time)
        if self._together is None and len(self._paces) >= enough:
            self._together = self.clock()
            # Steps from here on count: those before may have been beside the start of another.
            self._last.clear()
        waited = self._together is not None and self.clock() - self._together > _SECONDS_OF_PATIENCE
        # A run that has ended will be followed by others, which do not wait for the rest.
        if len(self._settled) >= enough or waited or record["kind"] == "result":
            paces = [pace for name, pace in self._paces.items() if name in self._settled] or [*self._paces.values()]
            self.say(forecast([*self.runs.values()], max(self.at_a_time, len(self._working)), paces))
            self._said = True

    def left(self) -> float | None:
        """Seconds until all runs have ended, None before any told its pace."""
        if not self._rates:
            return None
        together = min(max(self.at_a_time, len(self._working)), len(self._open))
        return self._todo * self._rate / len(self._rates) / max(1, together)

    def _learn(self, name: str, record: Mapping[str, Any]) -> None:
        if record["kind"] in ("result", "failure"):
            self._todo -= self._open.pop(name)
            self._working.discard(name)
            return
        if record["kind"] == "pace":
            self._working.add(name)
            self._told(name, Pace.heard(record))
        elif record["kind"] == "training":
            step, seconds = record["step"], record["seconds"]
            before = self._last.get(name)
            if name in self._paces and before and step > before[0]:
                self._told(name, _with_steps_of(self._paces[name], (seconds - before[1]) / (step - before[0])))
                if self._together is not None:
                    self._settled.add(name)
            self._last[name] = step, seconds
        left = min(self._open[name], self.runs[name].recipe.train.steps - record.get("step", 0))
        self._todo -= self._open[name] - left
        self._open[name] = left

    def _told(self, name: str, pace: Pace) -> None:
        """Seconds for a step with its share of the validations: one figure serves runs of all lengths."""
        self._paces[name] = pace
        recipe = self.runs[name].recipe
        rate = seconds_of(recipe, pace) / recipe.train.steps
        self._rate += rate - self._rates.get(name, 0.0)
        self._rates[name] = rate


def _with_steps_of(pace: Pace, seconds: float) -> Pace:
    """The pace with steps of so many seconds. Its validation was timed beside its steps, and changes as they do."""
    seconds = max(seconds, 1e-9)
    if pace.validation_seconds is None or not pace.step_seconds:
        return replace(pace, step_seconds=seconds)
    validation = pace.validation_seconds * seconds / pace.step_seconds
    return replace(pace, step_seconds=seconds, validation_seconds=validation)


def forecast(runs: Sequence[Planned], at_a_time: int, paces: Sequence[Pace]) -> str:
    """All runs, all their steps and the time they take, in a sentence."""
    validations = [pace.validation_seconds for pace in paces if pace.validation_seconds is not None]
    pace = Pace(
        step=0,
        step_seconds=fmean(pace.step_seconds for pace in paces),
        validation_seconds=fmean(validations) if validations else None,
    )
    each = [seconds_of(run.recipe, pace, run.shared) for run in runs]
    steps = sum(run.recipe.train.steps - run.shared for run in runs)
    together = f", {at_a_time} at a time," if at_a_time > 1 else ""
    return (
        f"{len(runs)} run{'s' * (len(runs) > 1)} of {steps:,} steps in all{together} of about "
        f"{spoken_seconds(pace.step_seconds)}: about {spoken_seconds(max(sum(each) / at_a_time, *each, 0.0))}"
    )
