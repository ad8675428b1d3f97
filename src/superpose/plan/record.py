"""plan.json: the schema that `superpose plan` writes and `superpose report` reads."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from superpose import __version__
from superpose.plan.advisor import Plan, summary
from superpose.plan.tables import tables


class PlanTable(BaseModel):
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


class PlanRecord(BaseModel):
    """What a reader may count on; all fields of `superpose.plan.Plan` are there beside it.

    Format 2 has hours, price and energy as [lowest, highest]; nothing that is declared here differs from format 1.
    """

    model_config = ConfigDict(extra="allow")

    format: Literal["superpose plan 1", "superpose plan 2"]
    summary: str
    tables: list[PlanTable]
    request: dict[str, Any]


def record(plan: Plan) -> dict[str, Any]:
    """All of a plan, as JSON has it; numbers that are infinite are null."""
    whole = asdict(plan)
    whole["request"]["config"] = plan.request.config.to_diff_dict()
    found = PlanRecord(
        format="superpose plan 2",
        summary=summary(plan),
        tables=[PlanTable(title=title, header=header, rows=rows) for title, header, rows in tables(plan)],
        request=_finite(whole.pop("request")),
        **{"version": __version__, **_finite(whole)},
    )
    written: dict[str, Any] = found.model_dump(mode="json")
    return written


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
