"""Curves that other programs logged: CSV, JSON lines, Trainer's state, TensorBoard's files, exports of W&B.

    ordinary=a/*.csv -> files -> runs of an arm, each with its seed, if that can be told -> values of one metric by x

Nothing is guessed of a file that does not say it: what is missing is named in an error.
"""

import csv
import glob
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpose.errors import UserError

STEPS = ("step", "_step", "Step", "global_step", "iter", "iteration")
"""What programs call the number of steps, in the order they are looked for."""
_SEED = re.compile(r"seed[-_= ]?(\d+)", re.IGNORECASE)

_Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """What one run logged of a metric.

    Attributes:
        run: its file, and its name in a file of several.
        seed: None where nothing says it.
        points: (x, value), x ascending and above 0; an x that was logged twice has its last value.
    """

    run: str
    seed: int | None
    points: tuple[_Point, ...]

    @property
    def end(self) -> float:
        return self.points[-1][0]


def read_arms(arms: Sequence[str], metric: str, x: str | None = None) -> dict[str, list[Curve]]:
    """The runs of each arm, in the order of their files.

    Args:
        arms: `NAME=FILES` for each, where FILES may hold * and ?, and be a directory of TensorBoard's; a name given
            again adds to its runs.
        metric: name of what is compared; in nested records with dots.
        x: what it is compared over; by default steps.

    Raises:
        UserError: an arm has no file, a file cannot be read, or does not hold the metric or x.
    """
    found: dict[str, list[Curve]] = {}
    for text in arms:
        name, _, pattern = text.partition("=")
        if not (name and pattern):
            raise UserError(f"--logs {text}: expected NAME=FILES, such as ordinary=a/*.csv")
        files = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - a pattern may be absolute
        if not files:
            raise UserError(f"--logs {text}: there is no such file; check the path")
        found.setdefault(name, []).extend(curve for file in files for curve in read_curves(file, metric, x))
    if len(found) < 2:
        raise UserError("--logs: one arm cannot be compared; give another, such as --logs tst=b/*.jsonl")
    for name, curves in found.items():
        seeds = [curve.seed for curve in curves if curve.seed is not None]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        lengths = {(curve.seed, curve.end) for curve in curves if curve.seed is not None}
        if twice and len(lengths) < len(seeds):
            raise UserError(f"--logs {name}: two runs of the same length have seed {twice[0]}; leave one of them out")
    return found


def read_curves(file: Path, metric: str, x: str | None = None) -> list[Curve]:
    """The runs that a file holds; a UserError if there is none in it."""
    if file.is_dir() or "tfevents" in file.name:
        runs = _tensorboard(file, metric, x)
    elif file.suffix.lower() in (".csv", ".tsv"):
        runs = _table(file, metric, x)
    else:
        runs = _of_records(_records(file), file, metric, x)
    curves = []
    for name, points in runs.items():
        run = f"{file}: {name}" if name else str(file)
        for place, value in points:
            if not (math.isfinite(place) and math.isfinite(value)):
                raise UserError(f"{run}: {metric} is {value} at {place:g}; leave out a run that diverged, and say so")
        last = dict(sorted((place, value) for place, value in points if place > 0))
        if not last:
            raise UserError(f"{run} holds no {metric} after the start of the run; name another with --metric")
        # The innermost name that tells the seed; a folder's name serves where files are all called the same.
        told = [found for text in (name, file.name, *(p.name for p in file.parents)) if (found := _SEED.findall(text))]
        curves.append(Curve(run, int(told[0][-1]) if told else None, tuple(last.items())))
    return curves


def _table(file: Path, metric: str, x: str | None) -> dict[str, list[_Point]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            rows = [dict(row) for row in reader]
            header = list(reader.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table ({error}); give CSV with names in its first line") from None
    if metric in header:
        return _of_records(rows, file, metric, x)
    # An export of W&B has a column for each run.
    ending = f" - {metric}"
    columns = {name.removesuffix(ending): name for name in header if name.endswith(ending)}
    if not columns:
        raise _missing(file, metric, header)
    place = _name_of_x(file, header, x)
    return {run: _points(rows, file, column, place) for run, column in columns.items()}


def _records(file: Path) -> list[Mapping[str, Any]]:
    """The objects of JSON lines, or the log of a Trainer's state."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".json":
            whole = json.loads(text)
            records = whole.get("log_history") if isinstance(whole, dict) else whole
        else:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON lines ({error}); give CSV, JSON lines or TensorBoard's files") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{file} holds no records; expected an object a line, or Trainer's log_history")
    return records


def _of_records(
    records: Sequence[Mapping[str, Any]], file: Path, metric: str, x: str | None
) -> dict[str, list[_Point]]:
    """The points of a run, or of each, where records name their run or seed."""
    flat = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for record in flat for name in record))
    if metric not in names:
        raise _missing(file, metric, names)
    place = _name_of_x(file, names, x)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in flat:
        if record.get(metric) not in (None, ""):
            runs[_run_of(record)].append(record)
    return {run: _points(of_run, file, metric, place) for run, of_run in runs.items()}


def _run_of(record: Mapping[str, Any]) -> str:
    parts = [str(record[name]) for name in ("run", "run_name") if record.get(name) not in (None, "")]
    return " ".join([*parts, *([f"seed {record['seed']}"] if record.get("seed") not in (None, "") else [])])


def _flat(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A record with names such as val.loss for what is nested."""
    values: dict[str, Any] = {}
    for name, value in record.items():
        values |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return values


def _points(records: Iterable[Mapping[str, Any]], file: Path, metric: str, x: str) -> list[_Point]:
    points = []
    for record in records:
        if record.get(metric) in (None, "") or record.get(x) in (None, ""):
            continue
        try:
            points.append((float(record[x]), float(record[metric])))
        except (TypeError, ValueError):
            raise UserError(f"{file}: {metric} is {record[metric]!r} at {x} {record[x]!r}; give numbers") from None
    return points


def _tensorboard(file: Path, metric: str, x: str | None) -> dict[str, list[_Point]]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise UserError(f"{file} is TensorBoard's; install superpose[track] to read it") from None
    events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    if metric not in tags:
        raise _missing(file, metric, list(tags))
    if x is None or x in STEPS:
        return {"": [(float(step), value) for step, value in tags[metric].items()]}
    if x not in tags:
        raise UserError(f"{file} holds no {x} for --x; it holds step, {_some(list(tags))}")
    return {"": [(tags[x][step], value) for step, value in tags[metric].items() if step in tags[x]]}


def _name_of_x(file: Path, names: Sequence[str], x: str | None) -> str:
    found = next((name for name in ((x,) if x else STEPS) if name in names), None)
    if found is None:
        raise UserError(f"{file} holds no {x or 'steps'}; name one of {_some(names)} with --x")
    return found


def _missing(file: Path, metric: str, names: Sequence[str]) -> UserError:
    return UserError(f"{file} holds no {metric}; name one of {_some(names)} with --metric")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"
