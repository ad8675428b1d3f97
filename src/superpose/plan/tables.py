"""A plan for people: tables."""

from __future__ import annotations

from superpose.plan.advisor import Plan
from superpose.plan.cost import PUBLIC_RUNS, Range
from superpose.plan.evidence import short
from superpose.results.tables import Row, Table


def tables(plan: Plan) -> list[Table]:
    """Reasons, what is read, what it takes, memory, other settings; each a title, a header and rows."""
    # What speaks for a better decision than the plan's is to be known, and is no verdict of its own.
    reasons: list[Row] = [
        (reason.decision if reason.decision == plan.decision else "note", reason.text) for reason in plan.reasons
    ]
    found: list[Table] = [
        ("Why", ("", "reason"), reasons),
        _reading(plan),
        _cost(plan),
        _memory(plan),
    ]
    if plan.alternatives:
        found.append(_settings(plan))
    if plan.calibration is not None:
        found.append(_calibration(plan))
    return found


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
            ("utilisation", _range(cost.utilisation, "{:.0%}"), _reached(plan)),
            ("hours", _range(cost.hours), f"on {request.hardware}"),
            ("days", _range((cost.hours[0] / 24, cost.hours[1] / 24)), ""),
            ("device hours", _range(cost.device_hours), ""),
        ]
        if cost.price:
            currency = request.price_per_hour.currency if request.price_per_hour else ""
            price = f"{_range(cost.price, '{:,.0f}')} {currency}".strip()
            rows.append(("price", price, f"at {request.price_per_hour} a device and hour"))
        if cost.kwh and cost.kg_co2:
            watts = f"{request.hardware.device.watts:g} W rated, x 1.25 for the rest"
            rows += [
                ("energy, kWh", _range(cost.kwh), watts),
                ("CO2, kg", _range(cost.kg_co2), f"at {request.co2_grams:g} g a kWh"),
            ]
    if plan.prediction.speedup is not None:
        low, expected, high = plan.prediction.speedup
        saved = f"{expected:.2f} ({low:.2f} to {high:.2f})"
        rows.append(("ordinary steps for the same loss", saved, "times this run's, as measured in the evidence"))
    return "What it takes", ("", "amount", "how"), rows


def _reached(plan: Plan) -> str:
    """Where the utilisation is from."""
    hardware = plan.request.hardware
    assert hardware is not None
    of = f"of {hardware.device.flops:.3g} FLOP/s"
    if plan.calibration is not None:
        return f"{of}, by measured steps"
    if plan.request.utilisation is not None:
        return f"{of}, as given"
    known = [run for run in PUBLIC_RUNS if run.device == hardware.device.name]
    names = ", ".join(f"{run.name} {run.utilisation:.0%}" for run in (known if len(known) > 1 else PUBLIC_RUNS))
    return f"{of}; public runs: {names}, and a quarter beyond; --mfu or --calibrate says better"


def _range(values: Range, form: str = "{:,.1f}") -> str:
    low, high = (form.format(value) for value in values)
    return low if low == high else f"{low} to {high}"


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
    """The settings that cannot be told from the best: of each bag size its ratios."""
    by_size: dict[int, list[float]] = {}
    for setting in plan.alternatives:
        by_size.setdefault(setting.bag_size, []).append(setting.ratio)
    rows: list[Row] = [
        (str(size), f"{min(ratios):g} to {max(ratios):g}" if len(ratios) > 1 else f"{ratios[0]:g}")
        for size, ratios in sorted(by_size.items())
    ]
    return "Settings that the paper's sweeps cannot tell from the best", ("bag size", "ratio"), rows


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
