"""How sure a measured figure is: 95 % intervals over documents and questions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

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


def wilson(right: int, count: int) -> Interval:
    """A share and its score interval (Wilson, 1927), which stays within 0 and 1 and holds for few items."""
    ends = stats.binomtest(right, count).proportion_ci(method="wilson")
    return Interval(right / count, float(ends.low), float(ends.high))


@dataclass(frozen=True)
class PairedShares:
    """Difference of two shares of right answers over the same items.

    Attributes:
        difference: second minus first, with the adjusted Wald interval for pairs (Agresti and Min, 2005).
        p: of McNemar's exact test, two-sided: how likely so uneven a split of the items on which the two differ is,
            if both were equally good.
    """

    difference: Interval
    p: float


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
    return PairedShares(Interval((gained - lost) / count, centre - half, centre + half), p)
