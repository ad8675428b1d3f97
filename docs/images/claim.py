"""Draws the README's picture out of the committed results: `python docs/images/claim.py` writes speedup.svg beside it.

How many times TST's steps ordinary training takes to reach TST's loss, at each budget, with 95 % intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from draw import curve, picture, text

from superpose.compare import Comparison
from superpose.results.statistics import Speedup

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TEXTS = {"Python": ("python", "python-16000", "python-32000"), "English": ("english",)}
"""The comparisons of each text. Where several hold a budget the last counts: its ordinary runs are the longest."""
COLOURS = {"Python": "a-line", "English": "b-line"}
LEFT, RIGHT, TOP, BOTTOM = 70, 620, 84, 330
TICKS = (0.8, 1.0, 1.5, 2.0, 3.0)
LOWEST, HIGHEST = 0.75, 3.3


def measured(names: Sequence[str]) -> dict[int, Speedup]:
    """Speedups by TST's steps."""
    found: dict[int, Speedup] = {}
    for name in names:
        comparison = Comparison.load(RESULTS / name)
        for steps in comparison.budgets("tst"):
            speedup = comparison.equal_loss(steps)
            assert speedup is not None
            found[steps] = speedup
    return found


def claim() -> str:
    """The picture, as SVG."""
    found = {name: measured(names) for name, names in TEXTS.items()}
    budgets = sorted({steps for speedups in found.values() for steps in speedups})

    def across(steps: float) -> float:
        share = math.log(steps / budgets[0]) / math.log(budgets[-1] / budgets[0])
        return round(LEFT + 40 + share * (RIGHT - LEFT - 80), 1)

    def up(ratio: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * math.log(ratio / LOWEST) / math.log(HIGHEST / LOWEST), 1)

    parts = [text(20, 34, "How much longer ordinary training takes to reach TST's loss", "bold")]
    parts += [
        text(20, 56, "Times as many steps, at equal FLOPs a step. Bars: 95 % intervals over 5 seeds.", "small soft")
    ]
    for tick in TICKS:
        line = "line" if tick == 1 else "frame"
        parts += [curve([(LEFT, up(tick)), (RIGHT, up(tick))], line, dashed=tick == 1)]
        parts += [text(28, up(tick) + 4.5, f"{tick:g} x", "small soft")]
    parts += [text(RIGHT + 8, up(1) + 4.5, "no gain", "small soft")]
    for steps in budgets:
        parts += [text(across(steps), BOTTOM + 20, f"{steps:,}", "small soft middle")]
    parts += [text((LEFT + RIGHT) / 2, BOTTOM + 42, "steps of TST", "small soft middle")]
    for number, (name, speedups) in enumerate(found.items()):
        shift, colour = 8 * number - 4 * (len(found) - 1), COLOURS[name]
        points = [(across(steps) + shift, one) for steps, one in speedups.items()]
        parts += [interval(x, one, up, colour) for x, one in points]
        known = [(x, up(one.ratio)) for x, one in points if one.ratio is not None]
        parts += [curve(known, colour), *(dot(x, y, colour) for x, y in known)]
        x, y = known[-1]
        last = list(speedups.values())[-1].ratio
        parts += [text(x + 12, y + (34 if number else 5), f"{name} {last:.2f} x", "small bold")]
    parts += [text(20, BOTTOM + 66, "An arrow: the interval goes on beyond the budgets that were run.", "small soft")]
    parts += [
        text(
            20,
            BOTTOM + 84,
            "A model of 0.09 million parameters, s 4, r 0.1. No larger model was compared this way.",
            "small soft",
        )
    ]
    return picture(704, BOTTOM + 104, "Speedup of TST against the budget, with 95 % intervals", parts)


def interval(x: float, one: Speedup, up: Callable[[float], float], colour: str) -> str:
    """An upright bar; an end that no budget shows is an arrow to the edge."""
    bottom = BOTTOM if one.low is None else up(one.low)
    top = TOP if one.high is None else up(one.high)
    ends = [f"M{x:g} {bottom:g}V{top:g}"]
    ends += [f"M{x - 4:g} {bottom - 6:g}l4 6l4 -6" if one.low is None else f"M{x - 4:g} {bottom:g}h8"]
    ends += [f"M{x - 4:g} {top + 6:g}l4 -6l4 6" if one.high is None else f"M{x - 4:g} {top:g}h8"]
    return f'<path d="{"".join(ends)}" style="fill:none;stroke:var(--{colour});stroke-width:1.5;opacity:.7"/>'


def dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="4" style="fill:var(--{colour})"/>'


if __name__ == "__main__":
    (Path(__file__).parent / "speedup.svg").write_text(claim(), encoding="utf-8")
