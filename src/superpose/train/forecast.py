"""About how long runs take on this machine: read off the first steps of one, so that nothing is measured apart."""

from collections.abc import Callable

from superpose.train.config import Recipe
from superpose.train.records import Pace, Record
from superpose.train.running import Watcher
from superpose.train.step import StepResult

# Of the steps after the start: the first ones are slower than those that follow.
_SKIPPED, _TIMED = 2, 3


class PaceWatch(Watcher):
    """Tells after a few steps what one takes; `tell` is called once, or not at all in a run that is shorter."""

    def __init__(self, tell: Callable[[Record], None]) -> None:
        self._tell = tell
        self._since = 0.0

    def after_step(self, done: int, result: StepResult) -> None:
        steps = done - self.run.progress.step
        if steps not in (_SKIPPED, _SKIPPED + _TIMED):
            return
        float(result.loss)  # a device may be behind
        # Not the clock on the wall: what lies between may be a checkpoint or a validation.
        now = self.run.clock.seconds
        if steps == _SKIPPED:
            self._since = now
        else:
            seconds = (now - self._since) / _TIMED
            self._tell(Pace(step=done, step_seconds=seconds, validation_seconds=self.run.validation_seconds))


def seconds_of(recipe: Recipe, pace: Pace, done: int = 0) -> float:
    """About how long a run takes from step `done` on, with its validations.

    A step of either phase computes as many latents, so one pace serves both: in superposition it takes a few hundredths
    more (docs/training.md).
    """
    steps, every = recipe.train.steps, recipe.validation_interval
    validated = {*range(every, steps + 1, every), *recipe.schedule.boundaries, steps}
    validations = sum(step > done for step in validated) + (done == 0)
    seconds: float = (steps - done) * pace.step_seconds + validations * (pace.validation_seconds or 0.0)
    return seconds


def forecast(recipe: Recipe, pace: Pace) -> str:
    """What is left of a run, in a sentence to print after its first steps."""
    left = recipe.train.steps - pace.step
    return (
        f"{left} more steps of about {spoken_seconds(pace.step_seconds)}, "
        f"with all else about {spoken_seconds(seconds_of(recipe, pace, pace.step))}"
    )


def spoken_seconds(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
