"""The time a run spends training, and none of what it spends otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds spent training, without start-up, validation and checkpoints.

    Args:
        seconds: spent before this start of the run.
    """

    def __init__(self, seconds: float) -> None:
        self._spent = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._spent + (0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of a block out, whether it stands in one that is counted or not."""
        if self._since is None:
            yield
            return
        self._spent, self._since = self.seconds, None
        yield
        self._since = time.perf_counter()
