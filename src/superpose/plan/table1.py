"""The paper's Table 1 (arXiv 2605.06546) out of its recipes: what holds the accounting to account."""

from __future__ import annotations

from dataclasses import dataclass

from superpose.core.schedule import Schedule
from superpose.paper.published import published_runs
from superpose.plan.evidence import LATENTS_PER_STEP


@dataclass(frozen=True)
class Row:
    """A run of the table.

    Attributes:
        raw_tokens, published_tokens: counted here, and in the paper (rounded there).
        hours_ratio, published_ratio: of GPU hours, to the ordinary run of the fewest steps of its model. Ours is that
            of FLOPs, and so of latents.
    """

    model: str
    steps: int
    bag_size: int | None
    raw_tokens: float
    published_tokens: float
    hours_ratio: float
    published_ratio: float


def table1() -> list[Row]:
    """All runs of the table but the re-initialised one, which costs what its twin does."""
    runs = published_runs()
    rows = []
    for run in runs:
        batch = LATENTS_PER_STEP * (4 if run.params == "10B-A1B" else 1)
        first = min((r for r in runs if (r.params, r.bag_size) == (run.params, None)), key=lambda r: r.steps)
        schedule = Schedule(run.steps)
        if run.bag_size is not None:
            schedule = Schedule(run.steps, run.bag_size, run.tst_steps / run.steps)
        rows.append(
            Row(
                run.params,
                run.steps,
                run.bag_size,
                schedule.raw_tokens(batch),
                run.tokens,
                run.steps / first.steps,
                run.hours / first.hours,
            )
        )
    return rows
