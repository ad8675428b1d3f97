"""How much tokens tell of each other at a distance, and the weights for a bag's tokens that follow from it.

    I(d) = mutual information of tokens d apart, in nats       C0 + a d^k, fitted to it       w_i ~ C0 + a i^k

The paper weighs the i-th token of a target bag by the fit of its own corpus (DCLM: C0 3.63, a 1.35, k -1.25; arXiv
2605.06546, figure 10). An estimate from N pairs is too high by about (pairs seen - tokens seen) / 2N, which is taken
off (Miller and Madow); what is left of it at a large vocabulary is part of C0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat
from scipy import stats
from scipy.optimize import curve_fit

from superpose.data.tokens import TokenText
from superpose.errors import UserError

Tokens = npt.NDArray[np.int64]

_PARTS = 8
"""Of the text, fitted one by one to see how sure the exponent is."""
_MOST_TOKENS = 16_000_000


@dataclass(frozen=True)
class PowerLaw:
    """C0 + a d^k for tokens d apart, in nats.

    Attributes:
        exponent_low, exponent_high: 95 % interval of k, from fits of parts of the text by Student's t.
        information: the estimates the curve was fitted to, by distance.
    """

    constant: FiniteFloat
    factor: FiniteFloat
    exponent: Annotated[FiniteFloat, Field(le=0)]
    exponent_low: FiniteFloat
    exponent_high: FiniteFloat
    information: dict[Annotated[int, Field(ge=1)], FiniteFloat]

    def weights(self, bag_size: int) -> tuple[float, ...]:
        """Of a bag's tokens by their place [S], scaled to sum to 1."""
        raw = [self.constant + self.factor * place**self.exponent for place in range(1, bag_size + 1)]
        return tuple(value / sum(raw) for value in raw)


def mutual_information(tokens: Tokens, distance: int) -> float:
    """Of tokens `distance` apart, in nats, from ids [N] in the order of the text."""
    first, second = tokens[:-distance], tokens[distance:]
    pairs = np.unique(first * (int(tokens.max()) + 1) + second, return_counts=True)[1]
    singles = [np.unique(side, return_counts=True)[1] for side in (first, second)]
    seen = len(pairs) - len(singles[0]) - len(singles[1]) + 1
    plugged_in = stats.entropy(singles[0]) + stats.entropy(singles[1]) - stats.entropy(pairs)
    return float(plugged_in) - seen / (2 * len(first))


def fit_power_law(tokens: TokenText, most_distant: int = 32) -> PowerLaw:
    """Fits C0 + a d^k to the first 16 million tokens of a corpus, for distances 1 to `most_distant`.

    Raises:
        UserError: there is too little text, or its mutual information does not fall with distance.
    """
    ids = np.asarray(tokens.read(0, min(len(tokens), _MOST_TOKENS)), dtype=np.int64)
    if len(ids) < _PARTS * 100 * most_distant:
        raise UserError(f"{len(ids):,} tokens are too few to measure their mutual information; give more text")
    distances = range(1, most_distant + 1)
    whole = {distance: mutual_information(ids, distance) for distance in distances}
    constant, factor, exponent = _fit(whole)
    parts = [
        _fit({distance: mutual_information(part, distance) for distance in distances})[2]
        for part in np.array_split(ids, _PARTS)
    ]
    half = float(stats.t.ppf(0.975, _PARTS - 1)) * float(np.std(parts, ddof=1)) / _PARTS**0.5
    return PowerLaw(constant, factor, exponent, exponent - half, exponent + half, whole)


def _fit(information: dict[int, float]) -> tuple[float, float, float]:
    distances, values = np.array(list(information), dtype=float), np.array(list(information.values()))
    start: Sequence[float] = (values[-1], values[0] - values[-1], -1.0)
    try:
        (constant, factor, exponent), _ = curve_fit(
            lambda d, c, a, k: c + a * d**k, distances, values, start, bounds=([0, 0, -10], [np.inf, np.inf, -0.01])
        )
    except (RuntimeError, ValueError):
        raise UserError("the mutual information of this text does not fall as a power of the distance") from None
    return float(constant), float(factor), float(exponent)
