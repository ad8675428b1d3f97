"""How many runs and steps a command is about to train, and about how long that takes: one line, said early."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """Says the line as soon as the first runs have told their pace.

    Args:
        runs: to be trained now and later in this command, not those that are finished.
        at_a_time: how many are at work together.
        say: prints a line.
    """

    runs: Sequence[Planned]
    at_a_time: int
    say: Callable[[str], None]
    _paces: list[Pace] = field(default_factory=list)
    _said: bool = False

    def hear(self, record: Mapping[str, Any]) -> None:
        """Takes a record of any of the runs."""
        if self._said or record["kind"] not in ("pace", "result"):
            return
        if record["kind"] == "pace":
            self._paces.append(Pace.heard(record))
        # One that has ended will be followed by others, which do not wait for the rest.
        if self._paces and (record["kind"] == "result" or len(self._paces) >= min(_ENOUGH, self.at_a_time)):
            self.say(forecast(self.runs, self.at_a_time, self._paces))
            self._said = True


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
