"""The paper's own figures (arXiv 2605.06546), out of published.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal


@cache
def _all() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(files("superpose.paper").joinpath("published.json").read_text("utf-8"))
    return loaded


def published_loss(params: str, steps: int, bag: int | None, note: str = "") -> float:
    """Final loss in nats per token of a run of tables 1 and 2; `bag` is None for an ordinary one.

    Raises:
        KeyError: the paper has no such run.
    """
    for run in _all()["runs"]:
        remark = run.get("note", "")
        if (run["params"], run["steps"], run.get("bag")) == (params, steps, bag) and (
            note in remark if note else not remark
        ):
            return float(run["loss"])
    raise KeyError(f"the paper has no run of {params}, {steps} steps, bags of {bag}")


def published_gain(sweep: str, bag_size: int, ratio: float) -> float | None:
    """Final loss minus the baseline's in a cell of tables 4 to 7; None where the paper has none.

    Args:
        sweep: "270m_20k", "270m_100k", "600m_20k" or "600m_20k_power".
    """
    table = _all()["sweeps"][sweep]
    loss = table["final_loss"].get(str(ratio), {}).get(str(bag_size))
    return None if loss is None else round(loss - table["baseline"], 4)


@dataclass(frozen=True)
class PublishedRun:
    """A run of table 1, or the 10B-A1B mixture of experts.

    Attributes:
        params: as the paper writes it, such as "270M".
        tst_steps: those in superposition; 0 of an ordinary run.
        bag_size: None of an ordinary run.
        loss: final training loss, nats per token.
        tokens: raw ones, as the table rounds them.
        hours: of B200s.
    """

    params: str
    steps: int
    tst_steps: int
    bag_size: int | None
    loss: float
    tokens: float
    hours: float


def published_runs() -> tuple[PublishedRun, ...]:
    """All runs of one training; the one re-initialised at the switch (table 2) is left out."""
    return tuple(
        PublishedRun(
            run["params"],
            run["steps"],
            run.get("tst_steps") or 0,
            run.get("bag"),
            run["loss"],
            float(run["tokens"][:-1]) * {"B": 1e9, "T": 1e12}[run["tokens"][-1]],
            run["b200_hours"],
        )
        for run in _all()["runs"]
        if "note" not in run
    )


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


def published_sweeps() -> dict[str, Sweep]:
    """The four sweeps over bag sizes and ratios, by the names `published_gain` takes."""
    return {
        name: Sweep(
            table["params"],
            table["steps"],
            table["weighting"],
            {
                (int(bag), float(ratio)): round(table["baseline"] - loss, 4)
                for ratio, losses in table["final_loss"].items()
                for bag, loss in losses.items()
            },
        )
        for name, table in _all()["sweeps"].items()
    }
