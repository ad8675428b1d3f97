"""What runs look like while they work: bars on a terminal, lines elsewhere."""

import time
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table as Grid

from superpose.results.tables import Row, Table, of_words

# Without a terminal a line is printed for each validation, and this often for preparation.
_SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Progress of preparation and of any number of runs; a context manager, which may be entered again.

    Args:
        console: where it is shown, by default standard output; `rich.console.Console(quiet=True)` shows nothing.

    Attributes:
        failed: names of the runs that failed.
    """

    def __init__(self, console: Console | None = None) -> None:
        # What is printed holds names from outside, which are text and not markup.
        self.console = console = console or Console(markup=False, highlight=False)
        self.failed: list[str] = []
        self._live = console.is_terminal and not console.quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = -_SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        while self._tasks:
            self._progress.remove_task(self._tasks.popitem()[1])

    def say(self, line: str, style: str | None = None) -> None:
        """Prints a line, above the bars if there are any."""
        self.console.print(line, style=style)

    def prepare(self, what: str, share: float) -> None:
        """Progress of preparation, see `superpose.data.workers.Progress`."""
        task = self._task("prepare", 100)
        self._progress.update(task, description=what, completed=round(100 * share))
        if not self._live and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.console.print(f"{what} ({share:.0%})")

    def record(self, name: str, total_steps: int, record: dict[str, Any]) -> None:
        """A record of a run's metrics."""
        kind = record["kind"]
        if kind == "training":
            bag = record["bag_size"]
            phase = f"superposition, bags of {bag}" if record["phase"] == "superposition" else record["phase"]
            loss = f"bag loss {record['bag_loss']:.3f}" if "bag_loss" in record else f"loss {record['loss']:.3f}"
            self._progress.update(
                self._task(name, total_steps),
                completed=record["step"],
                description=f"{name} · {phase}",
                status=(
                    f"{loss} · {_thousands(record['raw_tokens_per_second'])} tokens/s raw, "
                    f"{_thousands(record['latents_per_second'])} latent · MFU {record['mfu']:.0%} · "
                    f"{record['memory'] / 2**30:.1f} GiB"
                ),
            )
        elif kind == "validation" and not self._live and record["step"]:
            self.console.print(
                f"{name}: step {record['step']} of {total_steps}, validation loss {record['val_loss']:.3f}, "
                f"{_thousands(record['raw_tokens'])} raw tokens, {record['seconds']:.0f} s{_crossing(record)}",
            )
        elif kind == "warning":
            self.console.print(f"{name}: {record['message']}", style="yellow")
        elif kind == "failure":
            self.failed.append(name)
            self.console.print(f"{name} failed: {record['message']}", style="red")
        elif kind == "result" and name in self._tasks:
            self._progress.update(
                self._tasks[name],
                completed=total_steps,
                description=f"{name} · done",
                status=f"validation loss {record['result']['val_loss']:.3f}",
            )

    def _task(self, name: str, total: int) -> TaskID:
        if name not in self._tasks:
            if "prepare" in self._tasks:  # runs begin when it is done
                self._progress.remove_task(self._tasks.pop("prepare"))
            self._tasks[name] = self._progress.add_task(name, total=total, status="")
        return self._tasks[name]


def summarize(result: dict[str, Any]) -> list[str]:
    """A finished run in a few sentences."""
    lines = [
        f"validation loss {result['val_loss']:.4f} nats per token, {result['val_bits_per_byte']:.4f} bits per byte",
        f"{result['seconds']:.0f} s of training, MFU {result['mfu']:.0%} of the measured matrix-product peak, "
        f"{result['peak_memory'] / 2**30:.1f} GiB at most",
    ]
    if "average_val_loss" in result:
        lines.insert(1, f"with averaged weights {result['average_val_loss']:.4f} nats per token")
    if switched := result.get("switch"):
        recovered = switched["steps_to_recover"]
        lines.append(
            f"switch at step {switched['step']}: the training loss jumped by {switched['spike']:+.2f} nats and "
            + ("did not come back to the bags' level" if recovered is None else f"was back after {recovered} steps")
        )
    energy = result["energy"]
    if energy["kwh"] is not None:
        lines.append(f"energy {energy['kwh']:.3g} kWh in {energy['hours']:.2g} h, {energy['how']}")
    return lines


def print_results(console: Console, tables: Sequence[Table], verdict: str) -> None:
    """Tables, and what they come to."""
    for title, header, rows in tables:
        console.print(f"\n{title}", style="bold")
        print_table(console, header, rows)
    console.print(f"\n{verdict}\n")


def print_table(console: Console, header: Row, rows: Sequence[Row]) -> None:
    table = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    # The first column names things: folded and never cut, so that its names can be copied.
    table.add_column(header[0], overflow="fold")
    for place, name in enumerate(header[1:], start=1):
        table.add_column(name, justify="left" if of_words(rows, place) else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _crossing(record: dict[str, Any]) -> str:
    if "crossed" in record:
        return f"; below the baseline since step {record['crossed']}"
    if "crossing_forecast" in record:
        return f"; may pass the baseline near step {record['crossing_forecast']}"
    return ""


def _thousands(number: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return f"{number:.0f}"
