"""Work on many items, several at a time, in the order they were given."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from superpose.engine.jobs import Engine, Job, without_records
from superpose.engine.local import Local

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0 to 1."""
Run = Callable[[Callable[[Any], Any], Sequence[Any], str], list[Any]]
"""(work, items, what is being done) to work of each item, in order."""


@contextmanager
def workers(processes: int, progress: Progress, engine: Engine | None = None) -> Iterator[Run]:
    """Yields a `Run` of so many items at a time; what it raises is what the work of an item raised.

    Args:
        processes: items at a time.
        progress: told of each item that is done.
        engine: where the work is done; by default in processes of this machine, or in this process where there is
            one, or one item.
    """
    keys = map(str, itertools.count())

    def run(work: Callable[[Any], Any], items: Sequence[Any], what: str) -> list[Any]:
        progress(what, 0)
        results: list[Any] = [None] * len(items)
        if engine is None and (processes < 2 or len(items) < 2):
            done: Iterator[tuple[int, Any]] = ((number, work(item)) for number, item in enumerate(items))
        else:
            done = _done(work, items, processes, others, keys)
        for count, (number, result) in enumerate(done, start=1):
            results[number] = result
            progress(what, count / len(items))
        return results

    with ExitStack() as stack:
        others = engine or stack.enter_context(Local())
        yield run


def _done(
    work: Callable[[Any], Any], items: Sequence[Any], processes: int, engine: Engine, keys: Iterator[str]
) -> Iterator[tuple[int, Any]]:
    """The number of each item and what came of it, as they are done."""
    waiting = iter(enumerate(items))
    begun: dict[str, int] = {}

    def begin(count: int) -> None:
        for number, item in itertools.islice(waiting, count):
            begun[key := next(keys)] = number
            engine.submit(key, Job.of(without_records, work, item, alone=False))

    try:
        begin(processes)
        while begun:
            event = engine.heard()
            number = begun.pop(event.key)
            if event.kind == "failed":
                raise event.value
            begin(1)
            yield number, event.value
    finally:
        engine.cancel(*begun)
