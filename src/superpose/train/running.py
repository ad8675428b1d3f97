"""A run under way: what was built for it, and where its records go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from superpose.data.store import TokenStore
from superpose.data.windows import WindowPlan
from superpose.train.checkpoint import Checkpoints
from superpose.train.clock import Clock
from superpose.train.config import Recipe
from superpose.train.distributed import Ranks
from superpose.train.meter import Meter
from superpose.train.records import Record, Warned
from superpose.train.state import TrainState
from superpose.train.watch.watcher import Watcher

Listener = Callable[[dict[str, Any]], None]
"""Told of every record that goes into metrics.jsonl."""


@dataclass(frozen=True)
class Running:
    """On this rank.

    Attributes:
        path: the run's directory.
        first: steps that were done when it was started or resumed.
        listeners: told of each record, in this order; none but on rank 0.
    """

    path: Path
    recipe: Recipe
    store: TokenStore
    windows: WindowPlan
    state: TrainState
    checkpoints: Checkpoints
    clock: Clock
    meter: Meter
    first: int
    watchers: Sequence[Watcher]
    listeners: Sequence[Listener]

    @property
    def ranks(self) -> Ranks:
        return self.state.ranks

    def window(self, step: int) -> Tensor:
        """This rank's windows of a step, on their way to the device."""
        window = self.windows.read(self.store.train.tokens, step, self.ranks.rank, self.ranks.world_size)
        if self.ranks.device.type == "cuda":
            return window.pin_memory().to(self.ranks.device, non_blocking=True)
        return window.to(self.ranks.device)

    def tell(self, record: Record) -> None:
        """Writes a record, and tells of it whoever listens."""
        for watcher in self.watchers:
            record = watcher.before_record(record)
        for listener in self.listeners:
            listener(record.as_json())
        for watcher in self.watchers:
            watcher.after_record(record)

    def warn(self, step: int, message: str) -> None:
        self.tell(Warned(step, message))
