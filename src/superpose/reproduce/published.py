"""The paper's own figures (arXiv 2605.06546), out of published.json."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _all() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(files("superpose.reproduce").joinpath("published.json").read_text("utf-8"))
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
