"""A plan for people (tables) and for programs (JSON)."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from superpose import __version__
from superpose.plan.advisor import Plan, summary
from superpose.plan.limits import short
from superpose.results.tables import Row, Table

FORMAT = "superpose plan 1"


def tables(plan: Plan) -> list[Table]:
    """Reasons, what is read, what it takes, memory, other settings; each a title, a header and rows."""
    found: list[Table] = [
        (
            "Why",
            ("", "reason"),
            [(reason.decision or "note", reason.text) for reason in plan.reasons],
        ),
        _reading(plan),
        _cost(plan),
        _memory(plan),
    ]
    if plan.alternatives:
        found.append(_settings(plan))
    if plan.calibration is not None:
        found.append(_calibration(plan))
    return found


def record(plan: Plan) -> dict[str, Any]:
    """All of a plan, as JSON has it; numbers that are infinite are null."""
    request = asdict(plan.request)
    request["config"] = plan.request.config.to_diff_dict()
    values = {**asdict(plan), "request": request}
    values["alternatives"] = [asdict(setting) for setting in plan.alternatives]
    whole = {
        "format": FORMAT,
        "version": __version__,
        "summary": summary(plan),
        **values,
        "tables": [{"title": title, "header": header, "rows": rows} for title, header, rows in tables(plan)],
    }
    cleaned: dict[str, Any] = _finite(whole)
    return cleaned


def _reading(plan: Plan) -> Table:
    cost = plan.cost
    rows: list[Row] = [
        (phase.phase, str(phase.bag_size), f"{phase.steps:,}", short(phase.raw_tokens)) for phase in cost.phases
    ]
    rows.append(("all", "", f"{cost.steps:,}", short(cost.raw_tokens)))
    rows.append(("an ordinary run", "1", f"{cost.steps:,}", short(cost.ordinary_tokens)))
    if cost.epochs is not None and cost.ordinary_epochs is not None:
        rows.append(("passes over the text", "", "", f"{cost.epochs:.2f} (ordinary {cost.ordinary_epochs:.2f})"))
    return "What is read", ("phase", "bag size", "steps", "raw tokens"), rows


def _cost(plan: Plan) -> Table:
    model, cost, request = plan.model, plan.cost, plan.request
    rows: list[Row] = [
        ("parameters", f"{model.parameters:,}", f"{model.architecture}, {model.layers} blocks, {model.width} wide"),
        ("active in a latent", f"{model.active:,}", "matrices and the head; tables are looked up"),
        ("FLOPs of a latent", f"{model.flops:.3g}", "forward and backward, attention included"),
        ("latents", short(cost.latents), f"{request.steps:,} steps of {request.rows:,} x {request.latents:,}"),
        ("FLOPs", f"{cost.flops:.3g}", "the same with and without bags"),
    ]
    if cost.hours is not None and cost.device_hours is not None and request.hardware is not None:
        measured = "by measured steps" if plan.calibration else "stated, not measured"
        rows += [
            ("utilisation", f"{cost.utilisation:.0%}", f"of {request.hardware.device.flops:.3g} FLOP/s, {measured}"),
            ("hours", f"{cost.hours:,.1f}", f"on {request.hardware}"),
            ("device hours", f"{cost.device_hours:,.1f}", ""),
        ]
        if cost.price is not None:
            rows.append(("price", f"{cost.price:,.0f}", f"at {request.price_per_hour:g} a device and hour"))
        rows += [
            ("energy, kWh", f"{cost.kwh:,.1f}", f"{request.hardware.device.watts:g} W rated, x 1.25 for the rest"),
            ("CO2, kg", f"{cost.kg_co2:,.1f}", f"at {request.co2_grams:g} g a kWh"),
        ]
    low, expected, high = plan.times_the_steps
    saved = f"{_number(expected)} ({_number(low)} to {_number(high)})"
    rows.append(("ordinary steps for the same loss", saved, "times this run's; an orientation"))
    return "What it takes", ("", "amount", "how"), rows


def _memory(plan: Plan) -> Table:
    memory, request = plan.memory, plan.request
    shards = request.sharing.shards
    spread = f"over {shards} shards" if shards > 1 else "whole"
    rows: list[Row] = [
        ("weights", _gib(memory.weights), f"float32, {spread}"),
        ("gradients", _gib(memory.gradients), f"float32, {spread}"),
        ("optimizer", _gib(memory.optimizer), f"{request.optimizer}, {spread}"),
        ("gathered", _gib(memory.gathered), "two blocks, embedding and head, and a block's gradients"),
        ("activations", _gib(memory.activations), "checkpointed" if request.checkpoint_activations else "kept"),
        ("head, chunked", _gib(memory.head), f"with whole logits {_gib(memory.head_whole)}"),
        ("process", _gib(memory.base), "libraries or the driver"),
        ("checkpoint", _gib(memory.checkpoint), "of the host, while one is written"),
        ("at most", _gib(memory.peak), f"with whole logits {_gib(memory.peak_whole)}"),
    ]
    return "Memory of a device, GiB", ("", "GiB", "what"), rows


def _settings(plan: Plan) -> Table:
    """The settings that cannot be told from the best: of each bag size its ratios, other weightings in a line each."""
    by_size: dict[int, list[float]] = {}
    sizes: dict[str, list[int]] = {}
    for setting in plan.alternatives:
        if setting.weighting == plan.setting.weighting:
            by_size.setdefault(setting.bag_size, []).append(setting.ratio)
        else:
            sizes.setdefault(setting.weighting, []).append(setting.bag_size)
    rows: list[Row] = [
        (str(size), f"{min(ratios):g} to {max(ratios):g}" if len(ratios) > 1 else f"{ratios[0]:g}")
        for size, ratios in sorted(by_size.items())
    ]
    rows += [(f"{min(found)} to {max(found)}", f"with {weighting} weights") for weighting, found in sizes.items()]
    return "Settings that cannot be told from the best", ("bag size", "ratio"), rows


def _calibration(plan: Plan) -> Table:
    measured = plan.calibration
    assert measured is not None
    recovery = measured.step_seconds.get(1)
    rows: list[Row] = []
    for size, seconds in measured.step_seconds.items():
        relative = "" if recovery is None else f"{seconds / recovery:.2f}"
        reading = measured.reading_seconds[size]
        rows.append((str(size), f"{seconds * 1e3:,.1f}", relative, f"{reading / seconds:.2%}"))
    rows.append(("at most", f"{measured.memory / 2**30:.2f} GiB", measured.precision, ""))
    return "Measured here", ("bag size", "step, ms", "of a recovery step", "reading, of a step"), rows


def _gib(count: int) -> str:
    return f"{count / 2**30:,.2f}"


def _number(value: float) -> str:
    return "none would do" if math.isinf(value) else f"{value:.2f}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
