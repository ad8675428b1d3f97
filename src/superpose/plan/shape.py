"""The form of the response: how TST's gain depends on model, budget, bag size, ratio and weighting.

    gain = height x (benefit - penalty)                                                      nats per token

    height  = A (tau / 70)^-beta (parameters / 600M)^gamma          tau = latents / parameters
    benefit = (1 - exp(-(s_w - 1) / sigma)) (1 - exp(-r (s - 1)^nu / rho))
    penalty = c (s - 1)^q ((1 - r)^-p - 1)

A model that has seen little data for its size is on the steep part of its loss curve, where the same saving of steps is
worth more nats, so the height falls with the latents per parameter tau (70 is 600M at 42 billion). The benefit
saturates in s and in r: most of it is there at s 4 and r 0.1. The penalty is recovery that is too short, and grows
without bounds as r nears 1. Both are exactly 0 at s = 1 and at r = 0. Weights w of a bag's tokens act as a smaller bag
of s_w = (sum w)^2 / sum w^2 tokens (Kish's effective sample size) in the first factor of the benefit.

Priors are wide, but for two that the few scales there are can hardly tell. If a speedup is worth the slope of the loss
curve, beta is the exponent of data in it, for which Hoffmann et al. (arXiv 2203.15556) have 0.28 and Besiroglu et al.
(arXiv 2404.10102) 0.37. And gamma, size at equal tau, is held near 0: it is there so that intervals widen with the
distance from the sizes that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superpose.core.loss import bag_weights

Array = NDArray[np.float64]
Coefficients = Mapping[str, float]
_TOKENS_PER_PARAMETER, _PARAMETERS = 70.0, 600e6
"""Where the height is A: amid the sweeps, so that A is nearly uncorrelated with its exponents."""


@dataclass(frozen=True)
class Settings:
    """Settings of runs side by side: each attribute is an array [settings].

    Attributes:
        effective: s_w, the bag size that a bag's weights amount to.
    """

    params: Array
    latents: Array
    bag_size: Array
    ratio: Array
    effective: Array

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Settings:
        """Of points, or of anything that has a point's params, latents, bag_size, ratio and weighting."""
        columns = [(row.params, row.latents, row.bag_size, row.ratio) for row in rows]
        params, latents, bag_size, ratio = np.array(columns, dtype=float).T
        effective = np.array([effective_size(row.bag_size, row.weighting) for row in rows])
        return cls(params, latents, bag_size, ratio, effective)


def effective_size(bag_size: int, weighting: Any) -> float:
    """How many tokens of equal weight a bag's weights amount to: (sum w)^2 / sum w^2."""
    weights = bag_weights(bag_size, weighting).double()
    return float(weights.sum() ** 2 / (weights**2).sum())


@dataclass(frozen=True)
class Prior:
    """A normal prior of a coefficient, or of its logarithm where the coefficient is positive.

    Attributes:
        centre: in the coefficient's own unit.
        deviation: of the coefficient, or of its logarithm.
    """

    centre: float
    deviation: float
    positive: bool = True

    def value(self, standard: float) -> float:
        """The coefficient that is `standard` deviations from the centre."""
        step = self.deviation * standard
        return self.centre * math.exp(step) if self.positive else self.centre + step


@dataclass(frozen=True)
class Form:
    """Three functions of coefficients and settings, and the coefficients' priors."""

    priors: Mapping[str, Prior]
    height: Callable[[Coefficients, Settings], Array]
    benefit: Callable[[Coefficients, Settings], Array]
    penalty: Callable[[Coefficients, Settings], Array]


def height(at: Coefficients, settings: Settings) -> Array:
    """Nats."""
    fed: Array = settings.latents / settings.params / _TOKENS_PER_PARAMETER
    return at["A"] * fed ** -at["beta"] * (settings.params / _PARAMETERS) ** at["gamma"]


def benefit(at: Coefficients, settings: Settings) -> Array:
    """0 to 1."""
    s, r = settings.bag_size - 1, settings.ratio
    saturated: Array = (1 - np.exp(-(settings.effective - 1) / at["sigma"])) * (
        1 - np.exp(-r * s ** at["nu"] / at["rho"])
    )
    return saturated


def penalty(at: Coefficients, settings: Settings) -> Array:
    """0 and up."""
    s, r = settings.bag_size - 1, settings.ratio
    lost: Array = at["c"] * s ** at["q"] * ((1 - r) ** -at["p"] - 1)
    return lost


FORM = Form(
    {
        "A": Prior(0.1, 1.0),
        "beta": Prior(0.3, 0.15, positive=False),
        "gamma": Prior(0.0, 0.05, positive=False),
        "sigma": Prior(1.5, 1.0),
        "rho": Prior(0.1, 1.0),
        "nu": Prior(0.3, 0.3, positive=False),
        "c": Prior(0.1, 1.0),
        "q": Prior(0.6, 0.5),
        "p": Prior(0.75, 0.5),
    },
    height,
    benefit,
    penalty,
)
"""Of the forms in benchmarks/response.py the one that predicts sweeps best that it has not seen."""
