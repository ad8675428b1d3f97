"""Stopping when asked: SIGTERM and SIGINT let the step finish and a checkpoint be written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedError(Exception):
    """A run was asked to stop and did, with a checkpoint of its last step."""

    def __init__(self, number: int, step: int) -> None:
        self.signal = signal.Signals(number)
        self.step = step
        super().__init__(f"stopped by {self.signal.name} after step {step}, which is saved")

    @property
    def exit_code(self) -> int:
        """As shells report a process that a signal ended."""
        return 128 + self.signal


class StopRequest:
    """Which signal asked this process to stop; 0 for none."""

    number: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes SIGTERM and SIGINT instead of ending at once; the same signal a second time ends at once.

    Both may come together: a terminal sends one to all processes, and what started them passes on the other.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread of a process can handle signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.number = request.number or number
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # What started this process may have it ignore one, as a shell does with SIGINT in the background.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
