"""Results in words and tables, for the terminal, Markdown and the report."""

import re
from collections.abc import Sequence

from superpose.core.schedule import Schedule

Row = tuple[str, ...]
Table = tuple[str, Row, list[Row]]
"""Title, header and rows, to be printed, or written as Markdown or HTML."""


def describe(schedule: Schedule) -> str:
    """A schedule in the paper's letters: "s 4, r 0.3"."""
    stages = [stage for stage in schedule.stages if stage.phase == "superposition"]
    parts = [f"s {stage.largest}, r {stage.steps / schedule.total_steps:.3g}" for stage in stages]
    mode = mode_of(schedule)
    return "; ".join(parts) + ("" if mode == "full" else f", {mode} only")


def mode_of(schedule: Schedule) -> str:
    """What superposition changes in a run; "full" for an ordinary one, and "a mode each" for stages that differ."""
    modes = {stage.mode for stage in schedule.stages if stage.superposes}
    return modes.pop() if len(modes) == 1 else "a mode each" if modes else "full"


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
