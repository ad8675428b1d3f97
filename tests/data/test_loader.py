import threading
import time
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data.loader import read_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("superpose-loader")]


@given(st.integers(0, 20), st.integers(1, 4))
def test_everything_comes_in_order(count, depth):
    assert list(read_ahead(lambda step: step * step, range(count), depth)) == [step * step for step in range(count)]
    assert not threads()


@pytest.mark.error(n=10)
def test_the_next_are_read_while_one_is_worked_on():
    read = []
    items = read_ahead(lambda step: read.append(step) or step, range(100), depth=3)
    assert next(items) == 0
    for _ in range(200):
        if len(read) >= 4:
            break
        time.sleep(0.01)
    assert 4 <= len(read) <= 5
    items.close()
    assert not threads()


def test_an_error_comes_where_its_item_would_have_come():
    def read(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    items = read_ahead(read, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert not threads()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_an_iterator_that_is_dropped_leaves_no_thread(error):
    def forgotten():
        for item in read_ahead(lambda step: step, range(10**9)):
            if item == 3 and error:
                raise error
            if item == 3:
                return

    with pytest.raises(error) if error else nullcontext():
        forgotten()
    for _ in range(100):
        if not threads():
            return
        time.sleep(0.05)
    pytest.fail("the reader is still there")
