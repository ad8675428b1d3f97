"""The spike at the switch from bags to single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from superpose.train.records import Result, Switch, Training, read_records
from superpose.train.watch.watcher import Watcher


class SwitchSpike(Watcher):
    """Says in the result how the run took the switch."""

    def before_finish(self, result: Result) -> Result:
        return replace(result, switch=switch(read_records(self.run.path / "metrics.jsonl", Training)))


def switch(records: Sequence[Training]) -> Switch | None:
    """The last change from bags to single tokens in a run's records; None where there is none."""
    after = next((i for i, record in enumerate(records) if record.phase == "recovery"), len(records))
    if not 0 < after < len(records):
        return None
    step, bag_loss = records[after - 1].step, records[after - 1].measured_loss
    recovered = next((record.step for record in records[after:] if record.measured_loss <= bag_loss), None)
    spike = records[after].measured_loss - bag_loss
    return Switch(step, bag_loss, spike, None if recovered is None else recovered - step)
