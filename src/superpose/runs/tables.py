"""Runs in tables and as JSON: a list of them, and one in full."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from superpose.results.tables import Row, Table, describe
from superpose.runs.disk import RunOnDisk, size_of

_Item = TypeVar("_Item")


def listed(run: RunOnDisk) -> dict[str, Any]:
    """What a list says of a run: sizes in bytes, age in seconds since it was last written to; None is unknown."""
    schedule, result = run.recipe.schedule, run.result
    return {
        "path": str(run.path),
        "names": [str(name) for name in run.names],
        "state": run.state,
        "step": run.step,
        "steps": run.recipe.train.steps,
        "parameters": result.parameters if result else None,
        "bag_size": [stage.bag_size for stage in schedule.stages if stage.phase == "superposition"],
        "ratio": [stage.steps / schedule.total_steps for stage in schedule.stages if stage.phase == "superposition"],
        "mode": schedule.mode,
        "seed": run.recipe.train.seed,
        "lr": run.recipe.train.lr,
        "val_loss": result.val_loss if result else None,
        "age_seconds": max(0.0, time.time() - max(path.stat().st_mtime for path in run.path.iterdir())),
        "bytes": size_of(run.path.resolve()),
    }


def table_of(runs: Sequence[RunOnDisk]) -> tuple[Row, list[Row]]:
    """Header and rows of a list."""
    header = ("run", "state", "parameters", "steps", "bags", "validation loss", "age", "on disk")
    return header, [_row(run, listed(run)) for run in runs]


def _row(run: RunOnDisk, known: dict[str, Any]) -> Row:
    return (
        known["path"],
        _state(run),
        "" if known["parameters"] is None else f"{known['parameters']:,}",
        f"{known['steps']:,}",
        describe(run.recipe.schedule) or "none",
        "" if known["val_loss"] is None else f"{known['val_loss']:.4f}",
        spoken_age(known["age_seconds"]),
        spoken_size(known["bytes"]),
    )


def shown(run: RunOnDisk) -> dict[str, Any]:
    """All that is known of a run, as JSON takes it."""
    return {
        **listed(run),
        "checkpoints": {str(step): size_of(run.path / "checkpoints" / f"step-{step:08d}") for step in run.checkpoints},
        "result": asdict(run.result) if run.result else None,
        "validations": [asdict(record) for record in run.validations],
        "recipe": run.recipe.model_dump(mode="json"),
    }


def tables_of(run: RunOnDisk) -> list[Table]:
    """All that is known of a run but its settings."""
    known, result = shown(run), run.result
    about: list[Row] = [
        ("state", _state(run)),
        ("schedule", describe(run.recipe.schedule) or "ordinary"),
        ("last written to", f"{spoken_age(known['age_seconds'])} ago"),
        ("on disk", spoken_size(known["bytes"])),
    ]
    about += [("also called", str(name)) for name in run.names]
    about += [(f"checkpoint of step {int(step):,}", spoken_size(size)) for step, size in known["checkpoints"].items()]
    if result:
        about += [
            ("parameters", "" if result.parameters is None else f"{result.parameters:,}"),
            ("raw tokens read", f"{result.raw_tokens:,}"),
            ("latents computed", f"{result.latents:,}"),
            ("training FLOPs", f"{result.flops:.3e}"),
            ("training time", spoken_age(result.seconds)),
        ]
        if result.energy and result.energy.kwh is not None:
            about.append(("energy", f"{result.energy.kwh:.3g} kWh, {result.energy.how}"))
        if result.average_val_loss is not None:
            about.append(("validation loss of the average", f"{result.average_val_loss:.4f}"))
    tables: list[Table] = [(str(run.path), ("", ""), about)]
    if run.validations:
        records = spread(run.validations, 10)
        rows: list[Row] = [
            (f"{record.step:,}", f"{record.val_loss:.4f}", f"{record.val_bits_per_byte:.4f}", f"{record.raw_tokens:,}")
            for record in records
        ]
        tables.append(("Validation", ("step", "loss, nats per token", "bits per byte", "raw tokens"), rows))
    return tables


def spoken_size(size: int) -> str:
    """Bytes in the unit that suits them, of powers of 1000."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"


def spoken_age(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many of the items, evenly spread, the last among them."""
    step = -(-len(items) // most)
    return list(reversed(items[::-1][::step])) if items else []


def _state(run: RunOnDisk) -> str:
    return run.state if run.state == "finished" else f"{run.state}, step {run.step:,}"
