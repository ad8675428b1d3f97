import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data.information import PowerLaw, fit_power_law, mutual_information
from superpose.errors import UserError


class Tokens:
    """What the store gives: an array that is read in parts."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __len__(self):
        return len(self.values)

    def read(self, start, count):
        return self.values[start : start + count]


def slow_information(tokens, distance):
    """Sum over pairs of p(a, b) log p(a, b) / p(a) p(b), less the correction for what was seen."""
    first, second = tokens[:-distance], tokens[distance:]
    total, pairs = 0.0, {}
    for pair in zip(first, second, strict=True):
        pairs[pair] = pairs.get(pair, 0) + 1
    n = len(first)
    for (a, b), count in pairs.items():
        total += count / n * np.log(count / n / (np.mean(first == a) * np.mean(second == b)))
    seen = len(pairs) - len(set(first)) - len(set(second)) + 1
    return total - seen / (2 * n)


@given(st.lists(st.integers(0, 5), min_size=12, max_size=60), st.integers(1, 8))
def test_it_is_what_its_definition_says(values, distance):
    tokens = np.array(values)
    assert mutual_information(tokens, distance) == pytest.approx(slow_information(tokens, distance), abs=1e-9)


def test_independent_tokens_tell_nothing_and_copies_all():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 50, 200_000)
    assert abs(mutual_information(noise, 1)) < 1e-3
    period = np.tile(generator.permutation(50), 2000)
    assert mutual_information(period, 3) == pytest.approx(np.log(50), abs=1e-2)


def test_a_chain_that_forgets_is_fitted():
    """Each token repeats the one before with a probability, so what it tells falls with distance."""
    generator = np.random.default_rng(0)
    fresh = generator.integers(0, 20, 400_000)
    keep = generator.random(400_000) < 0.8
    tokens = fresh.copy()
    for i in range(1, len(tokens)):
        if keep[i]:
            tokens[i] = tokens[i - 1]
    law = fit_power_law(Tokens(tokens))
    values = [law.information[distance] for distance in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert law.exponent < 0
    assert law.exponent_low < law.exponent < law.exponent_high
    assert mutual_information(tokens, 2) == law.information[2]


def test_weights_follow_the_law():
    law = PowerLaw(1.0, 3.0, -1.0, -1.1, -0.9, {})
    weights = law.weights(4)
    assert sum(weights) == pytest.approx(1)
    assert np.array(weights) / weights[0] == pytest.approx([1, 2.5 / 4, 2 / 4, 1.75 / 4])


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="too few"):
        fit_power_law(Tokens([1, 2, 3]))
