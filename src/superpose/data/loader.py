"""Reading ahead: the windows of the next steps are read on a thread while a step computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from queue import Empty, Full, Queue
from typing import TypeVar

_Item = TypeVar("_Item")

# How often a reader that has nothing to do looks whether anybody still waits for it.
_SECONDS = 0.1


def read_ahead(read: Callable[[int], _Item], steps: Iterable[int], depth: int = 2) -> Generator[_Item, None, None]:
    """Yields read(step) of each step in order, at most `depth` of them read before they are asked for.

    An exception of `read` is raised where its item would have come. The thread ends with the iterator: when that is
    used up, closed or forgotten.
    """
    items: Queue[tuple[_Item | None, BaseException | None, bool]] = Queue(depth)
    stopped = threading.Event()

    def put(item: _Item | None, error: BaseException | None = None, last: bool = False) -> bool:
        while not stopped.is_set():
            try:
                items.put((item, error, last), timeout=_SECONDS)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for step in steps:
                if not put(read(step)):
                    return
            put(None, last=True)
        except BaseException as error:
            put(None, error, last=True)

    thread = threading.Thread(target=work, name="superpose-loader", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = items.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # None is what the last one holds
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                items.get_nowait()
            except Empty:
                thread.join(_SECONDS)
