"""A plan as it is shown and written: tables for people, and plan.json, which `superpose report` reads."""

import json
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from superpose import __version__
from superpose.plan.advisor import Plan, summary
from superpose.plan.cost import Calibration
from superpose.plan.evidence import short
from superpose.plan.request import Hardware, Range, runs_on
from superpose.results.tables import Row, Table


class PlanTable(BaseModel):
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


class PlanRecord(BaseModel):
    """What a reader of plan.json may count on; all fields of `superpose.plan.Plan` are there beside it.

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
        **dict[str, Any](version=__version__),
        **json.loads(to_json(whole, inf_nan_mode="null")),
    )
    written: dict[str, Any] = found.model_dump(mode="json")
    return written


def tables(plan: Plan) -> list[Table]:
    """Reasons, what is read, what it takes, memory, other settings; each a title, a header and rows."""
    # What speaks for a better decision than the plan's is to be known, and is no verdict of its own.
    reasons: list[Row] = [
        (reason.decision if reason.decision == plan.decision else "note", reason.text) for reason in plan.reasons
    ]
    takes = ("What it takes", ("", "amount", "how"), _cost(plan))
    found: list[Table] = [("Why", ("", "reason"), reasons), _reading(plan), takes, _memory(plan)]
    found += [_settings(plan)] if plan.alternatives else []
    return found + ([_calibration(plan.calibration)] if plan.calibration is not None else [])


def _reading(plan: Plan) -> Table:
    cost = plan.cost
    rows: list[Row] = [
        *((phase.phase, str(phase.bag_size), f"{phase.steps:,}", short(phase.raw_tokens)) for phase in cost.phases),
        ("all", "", f"{cost.steps:,}", short(cost.raw_tokens)),
        ("an ordinary run", "1", f"{cost.steps:,}", short(cost.ordinary_tokens)),
    ]
    if cost.epochs is not None and cost.ordinary_epochs is not None:
        rows.append(("passes over the text", "", "", f"{cost.epochs:.2f} (ordinary {cost.ordinary_epochs:.2f})"))
    rows += [(f"passes over {name}", "", "", f"{passes:.2f}") for name, passes in cost.source_epochs.items()]
    return "What is read", ("phase", "bag size", "steps", "raw tokens"), rows


def _cost(plan: Plan) -> list[Row]:
    model, cost, request = plan.model, plan.cost, plan.request
    table = "one table for embedding and head" if model.tied else "embedding and head apart"
    shape = f"{model.architecture}, {model.layers} blocks, {model.width} wide, vocabulary {model.vocab_size:,}, {table}"
    rows: list[Row] = [
        ("parameters", f"{model.parameters:,}", shape + (f": {request.like}" if request.like else "")),
        ("active in a latent", f"{model.active:,}", "matrices and the head; tables are looked up"),
        ("FLOPs of a latent", f"{model.flops:.3g}", "forward and backward, attention included"),
        ("latents", short(cost.latents), f"{request.steps:,} steps of {request.rows:,} x {request.latents:,}"),
        ("FLOPs", f"{cost.flops:.3g}", "the same with and without bags"),
    ]
    if cost.hours and cost.device_hours and cost.utilisation and request.hardware is not None:
        rows += [
            ("utilisation", _range(cost.utilisation, "{:.0%}"), _reached(plan, request.hardware)),
            ("hours", _range(cost.hours), f"on {request.hardware}"),
            ("days", _range((cost.hours[0] / 24, cost.hours[1] / 24)), ""),
            ("device hours", _range(cost.device_hours), ""),
        ]
        if cost.price and (price := request.price_per_hour):
            amount = f"{_range(cost.price, '{:,.0f}')} {price.currency}".strip()
            rows.append(("price", amount, f"at {price} a device and hour"))
        if cost.kwh and cost.kg_co2:
            watts = f"{request.hardware.device.watts:g} W rated, x 1.25 for the rest"
            rows.append(("energy, kWh", _range(cost.kwh), watts))
            rows.append(("CO2, kg", _range(cost.kg_co2), f"at {request.co2_grams:g} g a kWh"))
    if plan.prediction.speedup is not None:
        saved = "{1:.2f} ({0:.2f} to {2:.2f})".format(*plan.prediction.speedup)
        rows.append(("ordinary steps for the same loss", saved, "times this run's, as measured in the evidence"))
    return rows


def _reached(plan: Plan, hardware: Hardware) -> str:
    """Where the utilisation is from."""
    of = f"of {hardware.device.flops:.3g} FLOP/s"
    if plan.calibration is not None:
        return f"{of}, by measured steps"
    if plan.request.utilisation is not None:
        return f"{of}, as given"
    names = ", ".join(f"{run.name} {run.utilisation:.0%}" for run in runs_on(hardware.device.name))
    return f"{of}; public runs: {names}, and a quarter beyond; --mfu or --calibrate says better"


def _range(values: Range, form: str = "{:,.1f}") -> str:
    low, high = (form.format(value) for value in values)
    return low if low == high else f"{low} to {high}"


def _memory(plan: Plan) -> Table:
    memory, request, shards = plan.memory, plan.request, plan.request.sharing.shards
    spread = f"over {shards} shards" if shards > 1 else "whole"
    spread += f", {heads} extra head{'s' * (heads > 1)} among them" if (heads := request.extra_heads) else ""
    parts = (
        ("weights", memory.weights, f"float32, {spread}"),
        ("gradients", memory.gradients, f"float32, {spread}"),
        ("optimizer", memory.optimizer, f"{request.optimizer}, {spread}"),
        ("gathered", memory.gathered, "two blocks, embedding and head, and a block's gradients"),
        ("activations", memory.activations, "checkpointed" if request.checkpoint_activations else "kept"),
        ("head, chunked", memory.head, f"with whole logits {_gib(memory.head_whole)}"),
        ("process", memory.base, "libraries or the driver"),
        ("checkpoint", memory.checkpoint, "of the host, while one is written"),
        ("at most", memory.peak, f"with whole logits {_gib(memory.peak_whole)}"),
    )
    return "Memory of a device, GiB", ("", "GiB", "what"), [(name, _gib(size), what) for name, size, what in parts]


def _settings(plan: Plan) -> Table:
    by_size: dict[int, list[float]] = {}
    for setting in plan.alternatives:
        by_size.setdefault(setting.bag_size, []).append(setting.ratio)
    rows: list[Row] = [
        (str(size), _range((min(ratios), max(ratios)), "{:g}")) for size, ratios in sorted(by_size.items())
    ]
    return "Settings that the paper's sweeps cannot tell from the best", ("bag size", "ratio"), rows


def _calibration(measured: Calibration) -> Table:
    recovery, rows = measured.step_seconds.get(1), list[Row]()
    for size, seconds in measured.step_seconds.items():
        relative = "" if recovery is None else f"{seconds / recovery:.2f}"
        reading = measured.reading_seconds[size]
        rows.append((str(size), f"{seconds * 1e3:,.1f}", relative, f"{reading / seconds:.2%}"))
    rows.append(("at most", f"{measured.memory / 2**30:.2f} GiB", measured.precision, ""))
    return "Measured here", ("bag size", "step, ms", "of a recovery step", "reading, of a step"), rows


def _gib(count: int) -> str:
    return f"{count / 2**30:,.2f}"
