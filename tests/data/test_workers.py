import os

import pytest

from superpose.data.workers import workers


def square(number):
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number, os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_errors_come_through(processes):
    shares = []
    with workers(processes, lambda what, share: shares.append(share)) as run:
        results = run(square, range(20), "squaring")
        assert [value for value, _ in results] == [number * number for number in range(20)]
        assert (os.getpid() in {process for _, process in results}) == (processes == 1)
        assert len({process for _, process in results}) <= processes
        assert shares == sorted(shares)
        assert run(square, [], "squaring") == []
        with pytest.raises(ValueError, match="-1 is negative"):
            run(square, [1, -1], "squaring")
        assert [value for value, _ in run(square, [2, 3], "squaring")] == [4, 9]
