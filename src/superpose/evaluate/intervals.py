"""How sure a measured figure is: 95 % intervals over documents and questions."""

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from superpose.evaluate.evaluation import PairedShares
from superpose.results.intervals import Interval
from superpose.results.statistics import tails

_RESAMPLES = 2_000
_Z = float(stats.norm.ppf(0.975))
# Draws held in memory at a time.
_DRAWS = 2**22

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def ratio(numerators: Floats, denominators: Floats) -> Interval:
    """The quotient of two sums over documents, such as nats of all / bytes of all, by a bootstrap over documents.

    For a difference of two models over the same documents, give the documents' differences as numerators: that
    pairs them.

    Args:
        numerators, denominators: float64 [documents]; the denominators' sum is positive.
    """
    count = len(numerators)
    value = float(numerators.sum() / denominators.sum())
    if count < 2:
        return Interval(value, None, None)
    generator = np.random.default_rng(0)  # the same documents drawn for every model, so that figures repeat
    quotients = []
    turns = math.ceil(_RESAMPLES / max(1, _DRAWS // count))
    for resamples in np.array_split(np.arange(_RESAMPLES), turns):
        drawn = generator.integers(0, count, (len(resamples), count))
        above, below = numerators[drawn].sum(axis=1), denominators[drawn].sum(axis=1)
        # Documents drawn may all be empty of what is counted; such a draw says nothing.
        quotients.append(above[below > 0] / below[below > 0])
    low, high = np.quantile(np.concatenate(quotients), tails(count))
    return Interval(value, float(low), float(high))


def wilson(right: Bools) -> Interval:
    """The share of right answers, bool [items], and its score interval (Wilson, 1927): within 0 and 1, good for few."""
    ends = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return Interval(float(right.mean()), float(ends.low), float(ends.high))


def paired_shares(first: Bools, second: Bools) -> PairedShares:
    """Compares two models' right answers, bool [items] each, to the same items in the same order."""
    assert len(first) == len(second) > 0
    count = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    # Half an item is added to each of the four cells: right and right, right and wrong, ...
    adjusted = count + 2
    centre = (gained - lost) / adjusted
    spread = gained + lost + 1 - (gained - lost) ** 2 / adjusted
    half = _Z * math.sqrt(spread) / adjusted
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return PairedShares(difference=Interval((gained - lost) / count, centre - half, centre + half), p=p)
