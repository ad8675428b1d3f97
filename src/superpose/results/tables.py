"""Results in words and tables, for the terminal, Markdown and the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from superpose.core.schedule import Schedule

if TYPE_CHECKING:  # imports SciPy, a second that a run without statistics need not wait
    from superpose.results.statistics import Difference, Speedup

Row = tuple[str, ...]
Table = tuple[str, Row, list[Row]]
"""Title, header and rows, to be printed, or written as Markdown or HTML."""


def spoken(difference: Difference) -> str:
    """A difference and its interval, as in a table."""
    interval = "" if difference.low is None else f" ({difference.low:+.4f} to {difference.high:+.4f})"
    return f"{difference.mean:+.4f}{interval}"


def spoken_speedup(speedup: Speedup) -> str:
    """A speedup and its interval, as in a table."""
    if speedup.ratio is None:
        return f"{'before the first' if speedup.beyond == 'first' else 'beyond the last'} budget"
    interval = "" if speedup.low is None and speedup.high is None else f" ({bounds(speedup)})"
    return f"{speedup.ratio:.2f} x{interval}"


def bounds(speedup: Speedup) -> str:
    """The ends of a speedup's interval."""
    low = "less than the first budget" if speedup.low is None else f"{speedup.low:.2f}"
    high = "beyond the last budget" if speedup.high is None else f"{speedup.high:.2f}"
    return f"{low} to {high}"


def describe(schedule: Schedule) -> str:
    """A schedule in the paper's letters: "s 4, r 0.3"."""
    stages = [stage for stage in schedule.stages if stage.phase == "superposition"]
    parts = [f"s {stage.bag_size}, r {stage.steps / schedule.total_steps:.3g}" for stage in stages]
    mode = "" if schedule.mode == "full" else f", {schedule.mode} only"
    return "; ".join(parts) + mode


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
