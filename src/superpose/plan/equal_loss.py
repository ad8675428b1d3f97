"""How long ordinary training would take for the same loss: a gain in nats, read off a loss curve's slope.

    L(tau) = E + B tau^-b        tau = latents / parameters; d L / d ln tau = -b B tau^-b

The paper's ordinary runs of one model at two budgets (arXiv 2605.06546, table 1: 270M at 20,000 and 100,000 steps, 3B
at 20,000 and 50,000) give two slopes, at two tau, and with them b and B; E does not matter. Two slopes are no more than
an orientation: held against the paper's own pair of equal loss (3B, 20,000 TST steps and 36,000 ordinary ones: 1.80)
it says 1.99.
"""

from __future__ import annotations

import math
from functools import cache

from superpose.paper.published import published_loss
from superpose.plan.evidence import LATENTS_PER_STEP

_PAIRS = (("270M", 270e6, 20_000, 100_000), ("3B", 3e9, 20_000, 50_000))


@cache
def _law() -> tuple[float, float]:
    """b and b x B."""
    points = []
    for name, params, few, many in _PAIRS:
        slope = (published_loss(name, few, None) - published_loss(name, many, None)) / math.log(many / few)
        tau = LATENTS_PER_STEP * math.sqrt(few * many) / params
        points.append((tau, slope))
    (tau_1, slope_1), (tau_2, slope_2) = points
    exponent = math.log(slope_2 / slope_1) / math.log(tau_1 / tau_2)
    return exponent, slope_1 * tau_1**exponent


def times_the_steps(gain: float, params: float, latents: float) -> float:
    """How many times the steps an ordinary run takes to end `gain` nats lower; infinite where none would.

    Args:
        params: of the model.
        latents: of the ordinary run that is to be extended.
    """
    exponent, factor = _law()
    left = 1 - gain * exponent / (factor * (latents / params) ** -exponent)
    return math.inf if left <= 0 else left ** (-1 / exponent)
