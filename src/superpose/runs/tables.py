"""Runs in tables and as JSON: a list of them, one in full, and several side by side.

Single runs are no comparison of methods, `superpose compare` is; `differences` shows what was trained, whatever it was.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from superpose.errors import UserError
from superpose.files import read_json
from superpose.results.statistics import loss_at
from superpose.results.tables import Row, Table, describe, mode_of
from superpose.runs.disk import RunOnDisk, size_of

_Item = TypeVar("_Item")

_MOST = 10
"""Rows of a table of losses."""


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
        "bag_size": [stage.largest for stage in schedule.stages if stage.phase == "superposition"],
        "ratio": [stage.steps / schedule.total_steps for stage in schedule.stages if stage.phase == "superposition"],
        "mode": mode_of(schedule),
        "seed": run.recipe.train.seed,
        "lr": run.recipe.train.lr,
        "val_loss": result.val_loss if result else None,
        "age_seconds": max(0.0, time.time() - max(path.stat().st_mtime for path in run.path.iterdir())),
        "bytes": size_of(run.path.resolve()),
    }


def table_of(runs: Sequence[RunOnDisk]) -> tuple[Row, list[Row]]:
    """Header and rows of a list."""
    header = ("run", "state", "parameters", "steps", "bags", "validation loss", "age", "on disk")
    rows: list[Row] = [
        (
            known["path"],
            _state(run),
            "" if known["parameters"] is None else f"{known['parameters']:,}",
            f"{known['steps']:,}",
            describe(run.recipe.schedule) or "none",
            "" if known["val_loss"] is None else f"{known['val_loss']:.4f}",
            spoken_age(known["age_seconds"]),
            spoken_size(known["bytes"]),
        )
        for run, known in zip(runs, map(listed, runs), strict=True)
    ]
    return header, rows


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
        rows: list[Row] = [
            (f"{record.step:,}", f"{record.val_loss:.4f}", f"{record.val_bits_per_byte:.4f}", f"{record.raw_tokens:,}")
            for record in spread(run.validations, _MOST)
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


@dataclass(frozen=True)
class Differences:
    """Of some runs; each tuple holds a value for each of them, in their order.

    Attributes:
        runs: their paths.
        settings: those that differ, by `section.name`; parts of the model's configuration by their names.
        at_steps: validation losses, nats per token, at steps that all of them validated.
        at_flops: the same at training FLOPs that all of them spent, read between validations.
        same_text: whether they were trained and validated on the same tokens; losses compare only then.
    """

    runs: tuple[str, ...]
    settings: dict[str, tuple[Any, ...]]
    at_steps: dict[int, tuple[float, ...]]
    at_flops: dict[float, tuple[float, ...]]
    same_text: bool

    def tables(self) -> list[Table]:
        """What differs, for the terminal."""
        settings: list[Row] = [(name, *map(_short, values)) for name, values in self.settings.items()]
        steps: list[Row] = [(f"{step:,}", *map("{:.4f}".format, losses)) for step, losses in self.at_steps.items()]
        flops: list[Row] = [(f"{spent:.3e}", *map("{:.4f}".format, at)) for spent, at in self.at_flops.items()]
        tables: list[Table] = [
            ("Settings that differ", ("setting", *self.runs), settings),
            ("Validation loss at equal steps, nats per token", ("step", *self.runs), steps),
            ("Validation loss at equal FLOPs, nats per token", ("FLOPs", *self.runs), flops),
        ]
        return [table for table in tables if table[2]]

    def remarks(self) -> list[str]:
        """What to know before reading the tables."""
        sentences = {
            "All settings are the same.": not self.settings,
            "They were validated on different tokens, so their losses do not compare.": not self.same_text,
            "There is no step that all of them validated.": not self.at_steps,
            "There is no number of FLOPs at which the losses of all of them are known.": not self.at_flops,
        }
        return [sentence for sentence, holds in sentences.items() if holds]


def differences(runs: Sequence[RunOnDisk]) -> Differences:
    """Compares runs; a UserError if there is one alone, or a file was altered."""
    if len({run.path.resolve() for run in runs}) < 2:
        raise UserError("expected two runs or more to compare")
    flat = [_flat(run) for run in runs]
    settings = {name: tuple(one.get(name) for one in flat) for name in sorted(set().union(*flat))}
    losses = [{record.step: record.val_loss for record in run.validations} for run in runs]
    common = sorted(set.intersection(*(set(one) for one in losses)))
    return Differences(
        tuple(str(run.path) for run in runs),
        {name: values for name, values in settings.items() if len(set(map(_as_json, values))) > 1},
        {step: tuple(one[step] for one in losses) for step in spread(common, _MOST)},
        _at_flops(runs),
        len({read_json(run.path / "store.json").get("fingerprint") for run in runs}) == 1,
    )


def _flat(run: RunOnDisk) -> dict[str, Any]:
    sections = run.recipe.model_dump(mode="json")
    sections["model.config"] = sections["model"].pop("config")
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}


def _at_flops(runs: Sequence[RunOnDisk]) -> dict[float, tuple[float, ...]]:
    """Where the run that spent least was validated: there it is measured, and the others are read in between."""
    # The untrained model spent nothing, of which there is no logarithm.
    curves = [[(record.flops, record.val_loss) for record in run.validations if record.flops > 0] for run in runs]
    if not all(curves):
        return {}
    shortest = min(curves, key=lambda curve: curve[-1][0])
    rows = {}
    for spent, _ in shortest:
        losses = [loss for curve in curves if (loss := loss_at(curve, spent)) is not None]
        if len(losses) == len(curves):
            rows[spent] = tuple(losses)
    return {spent: rows[spent] for spent in spread(list(rows), _MOST)}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _short(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else _as_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
