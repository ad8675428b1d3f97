import itertools
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from superpose.results import statistics as results_statistics
from superpose.results.statistics import Difference, corrected, loss_at, paired_difference, seeds_needed, speedup


def test_the_interval_is_that_of_a_paired_t_test():
    ordinary, tst = [3.0, 3.2, 3.1, 3.4], [2.9, 3.1, 3.15, 3.2]
    difference = paired_difference(ordinary, tst)
    expected = stats.ttest_rel(tst, ordinary).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.value == pytest.approx(np.mean(tst) - np.mean(ordinary))


def test_one_seed_has_no_interval():
    difference = paired_difference([3.0], [2.9])
    assert (difference.low, difference.high, difference.seeds, difference.bootstrap) == (None, None, 1, None)
    assert not difference.excludes_zero


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = bootstrapped = 0
    for _ in range(300):
        sample = generator.normal(0.5, 1.0, 5)
        difference = paired_difference([0.0] * 5, sample.tolist())
        covered += difference.low <= 0.5 <= difference.high
        bootstrapped += difference.bootstrap[0] <= 0.5 <= difference.bootstrap[1]
    assert 275 <= covered <= 295
    assert 270 <= bootstrapped <= 298


def test_with_many_seeds_the_bootstrap_is_that_of_scipy():
    sample = np.random.default_rng(0).normal(0, 0.1, 200)
    ours = paired_difference([0.0] * 200, sample.tolist()).bootstrap
    theirs = stats.bootstrap((sample,), np.mean, method="percentile", rng=1).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-3)


def test_unpaired_results_are_refused():
    with pytest.raises(ValueError, match="one of each"):
        paired_difference([1.0, 2.0], [1.0])


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_the_seeds_needed_are_the_fewest_that_suffice(deviation, precision):
    def half(count):
        return stats.t.ppf(0.975, count - 1) * deviation / math.sqrt(count)

    count = seeds_needed(deviation, precision, most=2000)
    if count is None:
        assert half(2000) > precision
    else:
        assert half(count) <= precision
        assert count == 2 or half(count - 1) > precision


def losses(budgets, seeds=(0.0,), slope=0.1):
    """Losses that fall by `slope` nats with each doubling of the budget; seeds are offsets."""
    return {budget: [4 - slope * math.log2(budget) + seed for seed in seeds] for budget in budgets}


class TestSpeedup:
    @given(st.floats(1000, 8000), st.integers(500, 4000))
    def test_it_is_read_off_in_log_steps(self, place, steps):
        ordinary = losses((1000, 2000, 4000, 8000))
        answer = speedup(ordinary, losses((place,))[place], steps)
        if answer.ratio is None:  # on the very edge, by rounding
            assert place == pytest.approx(1000) or place == pytest.approx(8000)
        else:
            assert answer.ratio == pytest.approx(place / steps, rel=1e-6)
            assert answer.advice is None

    def test_beyond_the_last_budget_it_is_refused_and_the_missing_one_named(self):
        answer = speedup(losses((1000, 2000)), losses((4000,))[4000], 1000)
        assert (answer.ratio, answer.beyond) == (None, "last")
        wanted = int(answer.advice.split("--ordinary-budgets ")[1])
        assert 4000 <= wanted <= 6000  # enough, and not much more

    def test_before_the_first_budget_it_is_refused(self):
        answer = speedup(losses((1000, 2000)), losses((500,))[500], 1000)
        assert (answer.ratio, answer.beyond) == (None, "first")
        assert "add a shorter one" in answer.advice

    def test_the_interval_covers_the_truth(self):
        generator = np.random.default_rng(0)
        budgets = (500, 1000, 2000, 4000, 8000)
        covered = 0
        for _ in range(30):
            noisy = {
                budget: [loss + generator.normal(0, 0.01) for loss in of_budget]
                for budget, of_budget in losses(budgets, [0.0] * 8).items()
            }
            tst = [loss + generator.normal(0, 0.01) for loss in losses((2000,), [0.0] * 8)[2000]]
            answer = speedup(noisy, tst, 1000)
            covered += answer.low <= 2 <= answer.high
        assert covered >= 27

    def test_an_interval_that_leaves_the_curve_has_no_end_there(self):
        ordinary = losses((1000, 2000), [-0.05, 0.0, 0.05])
        answer = speedup(ordinary, [4 - 0.1 * math.log2(1900) + d for d in (-0.2, 0.1, 0.1)], 1000)
        assert answer.high is None
        assert answer.ratio is not None

    def test_a_curve_never_rises(self):
        """Luck may make a longer run worse; the nearest falling curve is what is read."""
        answer = speedup({1000: [3.5], 2000: [3.2], 4000: [3.3], 8000: [3.0]}, [3.1], 1000)
        values = [loss for _, loss in answer.curve]
        assert values == sorted(values, reverse=True)
        assert values[1] == values[2] == pytest.approx(3.25)
        assert 4 < answer.ratio < 8

    def test_too_little_to_go_by_is_refused(self):
        with pytest.raises(ValueError, match="two or more"):
            speedup(losses((1000,)), [3.0], 1000)
        with pytest.raises(ValueError, match="same seeds"):
            speedup(losses((1000, 2000)), [3.0, 3.1], 1000)


def test_a_loss_between_budgets():
    curve = [(1000, 3.0), (4000, 2.0)]
    assert loss_at(curve, 2000) == pytest.approx(2.5)
    assert loss_at(curve, 1000) == 3.0
    assert loss_at(curve, 500) is loss_at(curve, 4001) is None


def measured(samples):
    """Differences of some variants, from [variants, seeds], without the bootstrap."""
    means, deviations = samples.mean(axis=1), samples.std(axis=1, ddof=1)
    seeds = samples.shape[1]
    pairs = zip(means.tolist(), deviations.tolist(), strict=True)
    return {f"v{n}": Difference(mean, None, None, seeds, deviation) for n, (mean, deviation) in enumerate(pairs)}


def drawn(effects, seeds, times, seed=0, shared=0.02):
    """Samples whose truth is known. They share what they are compared with, as variants share ordinary runs."""
    generator = np.random.default_rng(seed)
    for _ in range(times):
        own, common = generator.normal(0, 0.02, (len(effects), seeds)), generator.normal(0, shared, seeds)
        yield np.array(effects)[:, None] + own - common


class TestSeveral:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 3))
    def test_p_values_are_those_of_the_closed_test(self, raw, missing):
        """Holm by its definition: each set it is in has to be refused, by its smallest p times its size."""
        tried = len(raw) + missing
        everything = dict(enumerate([*raw, *[1.0] * missing]))
        with mock.patch.object(results_statistics, "_p_value", lambda one: one.value):
            ours = corrected({str(n): Difference(p) for n, p in enumerate(raw)}, tried)
        for n in range(len(raw)):
            others = [m for m in everything if m != n]
            sets = [(n, *more) for size in range(tried) for more in itertools.combinations(others, size)]
            expected = max(min(1.0, len(one) * min(everything[m] for m in one)) for one in sets)
            assert ours[str(n)].p == pytest.approx(expected)

    def test_of_one_nothing_is_corrected(self):
        sample = np.array([[-0.03, -0.01, -0.04, 0.01]])
        (one,) = corrected(measured(sample)).values()
        test = stats.ttest_1samp(sample[0], 0)
        interval = test.confidence_interval(0.95)
        assert (one.p, one.low, one.high) == pytest.approx((test.pvalue, interval.low, interval.high))

    @given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 2))
    def test_what_an_interval_excludes_is_decided(self, samples, missing):
        for one in corrected(measured(np.array(samples)), len(samples) + missing).values():
            assert one.decided or not one.excludes_zero or one.p == pytest.approx(0.05)

    def test_one_seed_has_neither_and_no_spread_is_certain(self):
        alone, equal, apart = (
            corrected({"a": one}, 3)["a"]
            for one in (Difference(-0.1), Difference(0.0, 0.0, 0.0, 3, 0.0), Difference(-0.1, -0.1, -0.1, 3, 0.0))
        )
        assert (alone.p, alone.low, alone.decided) == (None, None, False)
        assert (equal.p, equal.decided) == (1.0, False)
        assert (apart.p, apart.decided) == (0.0, True)

    def test_where_nothing_differs_a_claim_is_as_rare_as_it_says(self):
        """4 variants at 4 seeds: without correction, one of them is found to differ more than twice as often."""
        found, uncorrected, critical = 0, 0, stats.t.ppf(0.975, 3)
        for sample in drawn([0.0] * 4, 4, times := 800):
            one = measured(sample)
            found += any(answer.decided for answer in corrected(one).values())
            uncorrected += any(2 * abs(each.value) > critical * each.deviation for each in one.values())
        assert 0.01 * times < found < 0.07 * times
        assert uncorrected > 0.1 * times

    def test_beside_true_differences_the_others_are_claimed_as_rarely(self):
        found = 0
        for sample in drawn([-0.2, -0.2, 0.0, 0.0], 4, times := 500, seed=1):
            answers = corrected(measured(sample))
            found += answers["v2"].decided or answers["v3"].decided
        assert 0.01 * times < found < 0.07 * times

    def test_all_intervals_together_hold_the_truth(self):
        """Intervals at the levels of Holm's steps would not: that is why these are not theirs."""
        effects, together, stepped = np.array([0.4, 0.2, -0.1]), 0, 0
        levels = stats.t.ppf(1 - 0.025 / np.array([3, 2, 1]), 4)
        for sample in drawn(effects, 5, times := 1000, seed=2, shared=0.0):
            answers = corrected(measured(sample)).values()
            together += all(one.low <= effect <= one.high for one, effect in zip(answers, effects, strict=True))
            means, errors = sample.mean(axis=1), sample.std(axis=1, ddof=1) / math.sqrt(5)
            order = np.argsort(-abs(means / errors))  # the surest first
            stepped += bool((abs(means - effects)[order] <= levels * errors[order]).all())
        assert 0.935 * times < together < 0.98 * times
        assert stepped < 0.925 * times
