"""The moments of a run at which something can watch it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superpose.train.records import Record, Result

if TYPE_CHECKING:
    from superpose.train.running import Running
    from superpose.train.step import StepResult


class Watcher:
    """Watches a run; each kind fills in the moments it wants.

    started -> after_step, before_record, after_record ... -> before_finish -> closed

    Whatever a moment raises ends the run. It has to be raised on all ranks, see `superpose.train.distributed.Ranks`.
    """

    run: Running

    def started(self) -> None:
        """All is built and restored, and nothing trained yet."""

    def after_step(self, done: int, result: StepResult) -> None:
        """So many steps are done. To read a value of `result` makes a device wait."""

    def before_record(self, record: Record) -> Record:
        """The record as it is to be written."""
        return record

    def after_record(self, record: Record) -> None:
        """It is written."""

    def before_finish(self, result: Result) -> Result:
        """The result as rank 0 is to write it."""
        return result

    def closed(self) -> None:
        """The run has ended, whatever way."""
