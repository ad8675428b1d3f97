"""A training loss that is not what it should be: far from a guess at first, no number, or running away."""

from __future__ import annotations

import math
from dataclasses import astuple

from superpose.errors import UserError
from superpose.train.records import Record, Training
from superpose.train.running import Running
from superpose.train.step import StepResult
from superpose.train.watch.watcher import Watcher


class FirstLoss(Watcher):
    """Warns of a fresh model that does not guess.

    Its loss is log V in both phases. Anything else means that the parts are wired wrongly.
    """

    def after_step(self, done: int, result: StepResult) -> None:
        if done > 1 or not self.run.recipe.starts_at_log_v:
            return
        loss, expected = float(self.run.ranks.mean(result.loss)), math.log(self.run.store.vocab_size)
        if abs(loss - expected) > 0.2 * expected:
            self.run.warn(
                1,
                f"the first loss is {loss:.2f}, a fresh model's is log(vocabulary) = {expected:.2f}; "
                f"check the model's initialisation before trusting this run",
            )


class Finite(Watcher):
    """Stops a run whose loss or gradient is no longer finite."""

    def before_record(self, record: Record) -> Record:
        if not all(math.isfinite(value) for value in astuple(record) if isinstance(value, float)):
            problem = f"the loss or its gradient is no longer finite at step {record.step}"
            raise _stopped(self.run, problem, record.step)
        return record


class Runaway(Watcher):
    """Stops a run whose loss has left its course: far above its lowest in this phase, three records in a row.

    Args:
        allowed: nats it may stand above its lowest; 0 for any.
    """

    PATIENCE = 3

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._phase = ""
        self._lowest = math.inf
        self._above = 0
        self.since = 0
        """Step of the last record on course."""

    def after_record(self, record: Record) -> None:
        if isinstance(record, Training) and self.leaves(record):
            raise _stopped(
                self.run,
                f"the loss has run away: {record.measured_loss:.3f} at step {record.step}, more than train.runaway = "
                f"{self._allowed} above its lowest",
                self.since,
            )

    def leaves(self, record: Training) -> bool:
        """Whether a record is the third in a row that is more than the allowed nats above the lowest."""
        loss = record.measured_loss
        if record.phase != self._phase:
            self._phase, self._lowest, self._above = record.phase, math.inf, 0
        self._lowest = min(self._lowest, loss)
        if not self._allowed or loss <= self._lowest + self._allowed:
            self._above, self.since = 0, record.step
            return False
        self._above += 1
        return self._above >= self.PATIENCE


def _stopped(run: Running, problem: str, good_at: int) -> UserError:
    """To raise on all ranks: what happened, and what to do about a loss that was good at a step for the last time."""
    run.checkpoints.wait()
    good = run.checkpoints.newest_before(good_at)
    where = f"the last good checkpoint is {good}; " if good else ""
    return run.ranks.shared_error(
        f"{run.path}: {problem}; {where}lower train.lr or raise train.warmup_steps, and start again in a new directory"
    )
