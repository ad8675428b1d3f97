"""What several seeds say, and how sure it is."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (TST minus ordinary, seed by seed) and how far it can be trusted.

    Attributes:
        mean: of the differences; negative is a lower loss for TST.
        low, high: 95 % interval of the mean by Student's t; None for a single seed, which has no spread.
        seeds: pairs.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


def paired_difference(ordinary: list[float], tst: list[float]) -> Difference:
    """Compares two arms trained at the same seeds, given in the same order.

    Raises:
        ValueError: the arms have different numbers of seeds, or none.
    """
    if len(ordinary) != len(tst) or not tst:
        raise ValueError(f"{len(ordinary)} ordinary and {len(tst)} TST results; give one of each for every seed")
    differences = [after - before for before, after in zip(ordinary, tst, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Difference(mean, None, None, 1)
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half, len(differences))
