"""Work in as many processes as there are cores, in the order it was given."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from types import ModuleType
from typing import Any

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0 to 1."""
Run = Callable[[Callable[[Any], Any], Sequence[Any], str], list[Any]]
"""(work, items, what is being done) to work of each item, in order."""


def available_cores() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers(processes: int, progress: Progress) -> Iterator[Run]:
    """Yields a `Run` over this many processes. With one process, or one item, the work is done in this one."""
    # A spawned process starts clean, whatever threads and locks this one holds.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start) if processes > 1 else None

    def run(work: Callable[[Any], Any], items: Sequence[Any], what: str) -> list[Any]:
        progress(what, 0)
        results: list[Any] = []
        for result in map(work, items) if pool is None or len(items) < 2 else _mapped(pool, work, items):
            results.append(result)
            progress(what, len(results) / len(items))
        return results

    try:
        yield run
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def script_left_out() -> Iterator[None]:
    """Processes started in this block do not run the user's script again.

    A process that is not forked begins by importing the main module. What is worked on here is never defined there, and
    a script without `if __name__ == "__main__":` would do all once more and wait for itself. So meanwhile the main
    module is an empty one.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _mapped(pool: ProcessPoolExecutor, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    # The pool starts its processes while work is handed over.
    with script_left_out():
        return pool.map(work, items)


def _start() -> None:
    # Ctrl-C is for the parent, which lets its workers finish what they have begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread each: there are as many processes as cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
