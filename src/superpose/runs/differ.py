"""Runs side by side: which settings differ, and their losses at equal steps and at equal FLOPs.

Single runs are no comparison of methods, `superpose compare` is; this shows what was trained, whatever it was.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from superpose.errors import UserError
from superpose.files import read_json
from superpose.results.statistics import loss_at
from superpose.results.tables import Row, Table
from superpose.runs.disk import RunOnDisk
from superpose.runs.tables import spread

_MOST = 10
"""Rows of a table of losses."""


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
    """Compares runs.

    Raises:
        UserError: there is one alone, or a file was altered.
    """
    if len({run.path.resolve() for run in runs}) < 2:
        raise UserError("expected two runs or more to compare")
    flat = [_flat(run) for run in runs]
    settings = {name: tuple(one.get(name) for one in flat) for name in sorted(set().union(*flat))}
    return Differences(
        tuple(str(run.path) for run in runs),
        {name: values for name, values in settings.items() if len(set(map(_as_json, values))) > 1},
        _at_steps(runs),
        _at_flops(runs),
        len({read_json(run.path / "store.json").get("fingerprint") for run in runs}) == 1,
    )


def _flat(run: RunOnDisk) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for section, values in run.recipe.model_dump(mode="json").items():
        for name, value in values.items():
            if (section, name) == ("model", "config"):
                settings |= {f"model.config.{inner}": setting for inner, setting in value.items()}
            else:
                settings[f"{section}.{name}"] = value
    return settings


def _at_steps(runs: Sequence[RunOnDisk]) -> dict[int, tuple[float, ...]]:
    losses = [{record.step: record.val_loss for record in run.validations} for run in runs]
    common = sorted(set.intersection(*(set(one) for one in losses)))
    return {step: tuple(one[step] for one in losses) for step in spread(common, _MOST)}


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
