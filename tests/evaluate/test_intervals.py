import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from superpose.evaluate.intervals import paired_shares, ratio, wilson


@pytest.mark.parametrize(("count", "share"), [(20, 0.3), (50, 0.05), (50, 0.5), (500, 0.25)])
def test_wilsons_interval_covers_a_share_as_often_as_it_says(count, share):
    covered = 0.0
    for right in range(count + 1):
        interval = wilson(np.arange(count) < right)
        if interval.low <= share <= interval.high:
            covered += stats.binom.pmf(right, count, share)
    assert covered == pytest.approx(0.95, abs=0.03)


@given(st.integers(1, 1000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_a_share_lies_in_its_interval_and_the_interval_in_0_to_1(case):
    right, count = case
    interval = wilson(np.arange(count) < right)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high


@pytest.mark.parametrize("documents", [10, 40])
def test_the_bootstrap_covers_a_quotient_of_sums_as_often_as_it_says(documents):
    """Documents of very different lengths, whose loss depends on their length."""
    generator = np.random.default_rng(1)
    sizes = generator.uniform(1, 10, 200_000)
    expected = (sizes * (2 + 0.1 * sizes)).sum() / sizes.sum()
    covered = 0
    for _ in range(300):
        drawn = generator.uniform(1, 10, documents)
        nats = drawn * (2 + 0.1 * drawn + generator.normal(0, 0.3, documents))
        interval = ratio(nats, drawn)
        assert interval.value == pytest.approx(nats.sum() / drawn.sum())
        covered += interval.low <= expected <= interval.high
    assert 0.9 <= covered / 300 <= 0.985


def test_pairing_narrows_the_interval_of_a_difference():
    generator = np.random.default_rng(2)
    sizes = generator.uniform(100, 1000, 30)
    first = sizes * generator.uniform(1, 4, 30)  # documents differ more than models do
    second = first - 0.05 * sizes * generator.uniform(0.8, 1.2, 30)
    difference = ratio(second - first, sizes)
    assert difference.excludes_zero
    assert difference.high < 0
    one, other = ratio(first, sizes), ratio(second, sizes)
    assert one.low < other.high  # intervals of each alone overlap


def test_many_documents_are_drawn_in_parts():
    generator = np.random.default_rng(3)
    values = generator.normal(1, 1, 5_000)
    interval = ratio(values, np.ones(5_000))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(5_000), rel=0.1)


def test_a_single_document_has_no_interval():
    interval = ratio(np.array([3.0]), np.array([2.0]))
    assert (interval.value, interval.low, interval.high) == (1.5, None, None)
    assert not interval.excludes_zero


def test_documents_without_tokens_do_not_spoil_the_bootstrap():
    """In a bucket of positions only some documents may have tokens."""
    interval = ratio(np.array([2.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert (interval.value, interval.low, interval.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("gained", "lost", "p"), [(5, 0, 2 / 2**5), (0, 0, 1.0), (3, 3, 1.0), (4, 1, 12 / 2**5)])
def test_mcnemars_test_counts_only_questions_on_which_the_two_differ(gained, lost, p):
    first = np.array([False] * gained + [True] * lost + [True] * 7 + [False] * 2)
    second = np.array([True] * gained + [False] * lost + [True] * 7 + [False] * 2)
    paired = paired_shares(first, second)
    assert paired.p == pytest.approx(p)
    assert paired.difference.value == pytest.approx((gained - lost) / (gained + lost + 9))
    assert paired.difference.low <= paired.difference.value <= paired.difference.high


@pytest.mark.parametrize("count", [20, 200])
def test_the_interval_of_a_paired_difference_covers_it(count):
    """Two models that err on the same hard questions: 0.6 and 0.7 are right, by the same difficulty and some luck."""
    generator = np.random.default_rng(4)
    covered = 0
    for _ in range(2_000):
        hard = generator.random(count) < 0.3
        first = generator.random(count) < np.where(hard, 0.25, 0.75)
        second = generator.random(count) < np.where(hard, 0.35, 0.85)
        difference = paired_shares(first, second).difference
        covered += difference.low <= 0.1 <= difference.high
    assert covered / 2_000 == pytest.approx(0.95, abs=0.025)
