"""How many runs and steps a command is about to train, and about how long that takes: one line, said early."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from superpose.train.config import Recipe
from superpose.train.forecast import seconds_of, spoken_seconds
from superpose.train.records import Pace

_ENOUGH = 4
"""Runs whose pace is waited for, where more are at work: they share the machine, so one alone would be faster."""


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
    """Says the line as soon as the first runs have told their pace, and learns from all that they tell afterwards.

    What is done for a record takes the same time however many runs there are.

    Args:
        runs: to be trained now and later in this command by their names, not those that are finished.
        at_a_time: how many are at work together.
        say: prints a line.
    """

    runs: Mapping[str, Planned]
    at_a_time: int
    say: Callable[[str], None]
    _paces: dict[str, Pace] = field(default_factory=dict)
    _rates: dict[str, float] = field(default_factory=dict)
    _last: dict[str, tuple[int, float]] = field(default_factory=dict)
    _said: bool = False

    def __post_init__(self) -> None:
        self._open = {name: run.recipe.train.steps - run.shared for name, run in self.runs.items()}
        self._todo, self._rate = sum(self._open.values()), 0.0

    def hear(self, name: str, record: Mapping[str, Any]) -> None:
        """Takes a record of any of the runs."""
        kind = record["kind"]
        if name in self._open:
            self._learn(name, record)
        if self._said or kind not in ("pace", "result"):
            return
        # One that has ended will be followed by others, which do not wait for the rest.
        if self._paces and (kind == "result" or len(self._paces) >= min(_ENOUGH, self.at_a_time)):
            self.say(forecast([*self.runs.values()], self.at_a_time, [*self._paces.values()]))
            self._said = True

    def left(self) -> float | None:
        """Seconds until all runs have ended, None before any told its pace."""
        if not self._rates:
            return None
        return self._todo * self._rate / len(self._rates) / max(1, min(self.at_a_time, len(self._open)))

    def _learn(self, name: str, record: Mapping[str, Any]) -> None:
        if record["kind"] in ("result", "failure"):
            self._todo -= self._open.pop(name)
            return
        if record["kind"] == "pace":
            self._told(name, Pace.heard(record))
        elif record["kind"] == "training":
            step, seconds = record["step"], record["seconds"]
            before = self._last.get(name)
            if name in self._paces and before and step > before[0]:
                self._told(name, replace(self._paces[name], step_seconds=(seconds - before[1]) / (step - before[0])))
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
