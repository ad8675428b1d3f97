"""Reading ahead: the windows of the next steps are read on a thread while a step computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")


def read_ahead(read: Callable[[int], _Item], steps: Iterable[int], depth: int = 2) -> Generator[_Item, None, None]:
    """Yields read(step) of each step in order, at most `depth` of them read before they are asked for.

    An exception of `read` is raised where its item would have come. The thread ends with the iterator: when that is
    used up, closed or forgotten.
    """
    reader = ThreadPoolExecutor(1, "superpose-loader")
    ahead: deque[Future[_Item]] = deque()
    try:
        for step in steps:
            ahead.append(reader.submit(read, step))
            if len(ahead) > depth:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)
