"""Where the points end, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from superpose.plan.evidence import OWN, Point

_FACTOR = 1.5
"""By which parameters and latents may lie outside of the points and still count as within."""
_FEWEST_STEPS = 20_000
"""Of the paper's runs."""


def beyond(
    points: Sequence[Point],
    params: float,
    latents: float,
    bag_size: int,
    ratio: float,
    weighting: str,
    steps: int | None = None,
) -> tuple[str, ...]:
    """One sentence for each way in which a run is outside of the points; none if it is among them.

    Points count for a setting if their s is within a third of it, their r within 0.1, and their weighting the same; it
    is their parameters and latents that the run is held against. So a single run at a large scale vouches for its own s
    and r there, and for no others.
    """
    setting = f"s {bag_size}, r {ratio:g}" + ("" if weighting == "uniform" else f", {weighting} weights")
    near = [
        point
        for point in points
        if abs(math.log(point.bag_size / bag_size)) <= math.log(4 / 3) + 1e-9
        and abs(point.ratio - ratio) <= 0.1 + 1e-9
        and point.weighting == weighting
    ]
    if not near:
        return (f"there is no point near {setting}",)
    outside = []
    for what, value, known in (
        ("parameters", params, [point.params for point in near]),
        ("latents", latents, [point.latents for point in near]),
    ):
        if value > max(known) * _FACTOR:
            outside.append(f"{short(value)} {what}: the points near {setting} end at {short(max(known))}")
        elif value < min(known) / _FACTOR:
            outside.append(f"{short(value)} {what}: the points near {setting} begin at {short(min(known))}")
    if steps is not None and steps < _FEWEST_STEPS and not any(point.setup == OWN for point in near):
        outside.append(f"{steps:,} steps: the paper's runs have {_FEWEST_STEPS:,} or more, and few steps gain less")
    return tuple(outside)


def short(number: float) -> str:
    """A large number in three digits: 600M, 3B, 42B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit * 0.9995:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
