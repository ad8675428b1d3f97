import numpy as np
import pytest
from scipy import stats

from superpose.compare.statistics import paired_difference


def test_the_interval_is_that_of_a_paired_t_test():
    ordinary, tst = [3.0, 3.2, 3.1, 3.4], [2.9, 3.1, 3.15, 3.2]
    difference = paired_difference(ordinary, tst)
    expected = stats.ttest_rel(tst, ordinary).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.mean == pytest.approx(np.mean(tst) - np.mean(ordinary))


def test_one_seed_has_no_interval():
    difference = paired_difference([3.0], [2.9])
    assert (difference.low, difference.high, difference.seeds) == (None, None, 1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        sample = generator.normal(0.5, 1.0, 5)
        difference = paired_difference([0.0] * 5, sample.tolist())
        covered += difference.low <= 0.5 <= difference.high
    assert 930 <= covered <= 970


def test_unpaired_results_are_refused():
    with pytest.raises(ValueError, match="one of each"):
        paired_difference([1.0, 2.0], [1.0])
