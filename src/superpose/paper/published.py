"""The paper's own figures (arXiv 2605.06546), out of published.json."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import TypeAdapter


@dataclass(frozen=True)
class PublishedRun:
    """A run of table 1, or the 10B-A1B mixture of experts.

    Attributes:
        params: as the paper writes it, such as "270M".
        loss: final training loss, nats per token.
        tokens: raw ones, as the table rounds them.
        hours: of B200s.
        tst_steps: those in superposition; 0 of an ordinary run.
        bag_size: None of an ordinary run.
    """

    params: str
    steps: int
    loss: float
    tokens: float
    hours: float
    tst_steps: int = 0
    bag_size: int | None = None


@dataclass(frozen=True)
class Sweep:
    """One of tables 4 to 7.

    Attributes:
        gains: the ordinary run's final loss minus the cell's, in nats per token, by (bag size, ratio).
    """

    params: str
    steps: int
    weighting: Literal["uniform", "power"]
    gains: dict[tuple[int, float], float]


@cache
def _all() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(files("superpose.paper").joinpath("published.json").read_text("utf-8"))
    return loaded


def published_runs() -> tuple[PublishedRun, ...]:
    """All runs of one training; the one re-initialised at the switch (table 2) is left out."""
    runs = [run for run in _all()["runs"] if "note" not in run]
    return TypeAdapter(tuple[PublishedRun, ...]).validate_python(runs)


@cache
def published_sweeps() -> dict[str, Sweep]:
    """The four sweeps over bag sizes and ratios: "270m_20k", "270m_100k", "600m_20k" and "600m_20k_power"."""
    found = {}
    for name, table in _all()["sweeps"].items():
        gains = {
            (int(bag), float(ratio)): round(table["baseline"] - loss, 4)
            for ratio, losses in table["final_loss"].items()
            for bag, loss in losses.items()
        }
        found[name] = Sweep(table["params"], table["steps"], table["weighting"], gains)
    return found


def published_gain(sweep: str, bag_size: int, ratio: float) -> float | None:
    """Final loss minus the ordinary run's in a cell of a sweep, nats per token; None where the paper has none."""
    gain = published_sweeps()[sweep].gains.get((bag_size, ratio))
    return None if gain is None else -gain
