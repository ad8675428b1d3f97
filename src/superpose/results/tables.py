"""Results in words and tables, for the terminal, Markdown and the report."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields

from superpose.core.schedule import Schedule
from superpose.core.stage import Stage

Row = tuple[str, ...]
Table = tuple[str, Row, list[Row]]
"""Title, header and rows, to be printed, or written as Markdown or HTML."""


def describe(schedule: Schedule) -> str:
    """A schedule in the paper's letters: "s 4, r 0.3"."""
    mode, parts = mode_of(schedule), []
    for stage in schedule.stages:
        words = [] if schedule.in_short else remarks(stage)
        if not words and stage.phase != "superposition":
            continue
        if mode not in ("full", stage.mode) and stage.superposes:
            words.append(f"mode {stage.mode}")
        sizes = " or ".join(map(str, stage.sizes))
        parts.append(", ".join([f"s {sizes}, r {stage.steps / schedule.total_steps:.3g}", *words]))
    if mode == _SEVERAL:
        return "; ".join(parts)
    return "; ".join(parts) + ("" if mode == "full" else f", {mode} only")


def remarks(stage: Stage) -> list[str]:
    """What a stage is beside its bag sizes and its mode, such as "pooling sqrt": the settings not at their defaults."""
    known = {"start", "stop", "phase", "bag_size", "mode"}
    told = [(field, getattr(stage, field.name)) for field in fields(stage) if field.name not in known]
    return [f"{field.name.replace('_', ' ')} {_told(value)}" for field, value in told if value != field.default]


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return " and ".join(f"{_told(inner)} of {name}" for name, inner in value.items())
    if isinstance(value, tuple):
        return " ".join(map(_told, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


_SEVERAL = "a mode each"


def mode_of(schedule: Schedule) -> str:
    """What superposition changes in a run; "full" for an ordinary one, and "a mode each" for stages that differ."""
    modes = {stage.mode for stage in schedule.stages if stage.superposes}
    return modes.pop() if len(modes) == 1 else _SEVERAL if modes else "full"


_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?\s?(%|x|k|M|B|T|GiB|ms|[A-Z]{3}|[$€£])?", re.ASCII)
_NUMBERS = re.compile(rf"{_NUMBER.pattern}( to {_NUMBER.pattern})?( \(.*\))?")
"""A number with its unit, a range of two, and what is said of them in brackets."""


def of_words(rows: Sequence[Row], place: int) -> bool:
    """Whether most of a column is words, which are read from the left, and not numbers, which line up at their ends."""
    cells = [row[place] for row in rows if row[place]]
    return 2 * sum(_NUMBERS.fullmatch(cell) is None for cell in cells) > len(cells)


def plain(text: str) -> str:
    """Text from outside as one line that Markdown takes for nothing else."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", " ".join(text.split()))


def markdown(tables: Sequence[Table], verdict: str) -> str:
    """Tables and what they come to, as Markdown."""
    parts = []
    for title, header, rows in tables:
        lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
        parts.append("\n".join([f"{title}\n", *(f"| {' | '.join(map(_cell, line))} |" for line in lines)]))
    return "\n\n".join([*parts, verdict]) + "\n"


def _cell(text: str) -> str:
    """Text that ends no cell of a table; what `plain` has escaped stays so."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)
