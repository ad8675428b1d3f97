"""What runs look like while they work: bars on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import Progress, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from superpose.results.tables import Row, Table, of_words
from superpose.train.forecast import spoken_seconds

# Without a terminal a line is printed for each validation, and this often for preparation.
_SECONDS_BETWEEN_LINES = 5.0
_WIDE = 140
"""Columns from which there is room for more than the speed."""
_LEAST_BAR, _LONGEST_BAR = 6, 24


class _Bars(Progress):
    """A line for the whole command, then one for each run at work, as many as the terminal has room for."""

    summary: Callable[[], str] = staticmethod(lambda: "")

    def get_renderables(self) -> Iterable[RenderableType]:
        tasks = self.tasks
        summary = self.summary()
        if not tasks and not summary:
            return
        if summary:
            yield Text(summary, style="bold", no_wrap=True, overflow="ellipsis")
        # One line is left for the cursor: a block as high as the terminal would scroll with each refresh.
        room = max(1, self.console.height - 1 - bool(summary))
        shown = tasks if len(tasks) <= room else tasks[: max(1, room - 1)]
        if shown:
            yield self._rows(shown)
        if len(shown) < len(tasks) and room > 1:
            yield Text(f"and {len(tasks) - len(shown)} more at work", style="dim")

    def _rows(self, tasks: Sequence[Task]) -> Grid:
        """How far each has come, then what it does, then how fast; what does not fit is left out, the last first."""
        width = self.console.width
        columns = [
            [task.description for task in tasks],
            [task.fields["amount"].format(task.completed, task.total) for task in tasks],
            [_clock(task.time_remaining) for task in tasks],
            [task.fields["phase"] for task in tasks],
            [task.fields["status" if width >= _WIDE else "speed"] for task in tasks],
        ]
        # Least widths, so that nothing moves when a number gets a digit.
        name, *others = (
            max(least, *map(len, column)) for least, column in zip((1, 1, 7, 10, 12), columns, strict=True)
        )
        while len(others) > 2 and name + _LEAST_BAR + sum(others) + len(others) + 1 > width:
            others.pop()
        # What room there is goes to the name, then to the bar.
        room = width - sum(others) - len(others) - 1
        name = max(1, min(name, room - _LEAST_BAR))
        bar = max(1, min(_LONGEST_BAR, room - name))
        grid = Grid.grid(padding=(0, 1, 0, 0), pad_edge=False)
        for place, size in enumerate((name, bar, *others)):
            grid.add_column(
                width=size, justify="right" if place in (2, 3) else "left", no_wrap=True, overflow="ellipsis"
            )
        for task, (title, *cells) in zip(tasks, zip(*columns, strict=True), strict=True):
            drawn = ProgressBar(total=task.total, completed=task.completed, width=bar)
            grid.add_row(Text(title), drawn, *map(Text, cells[: len(others)]))
        return grid


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))


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
        # Runs may tell of themselves minutes apart.
        self._progress = _Bars(console=console, disable=not self._live, transient=True, speed_estimate_period=1800)
        self._progress.summary = self.so_far
        self._expected: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._done: set[str] = set()
        self._left: Callable[[], float | None] = lambda: None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._part_began = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        while self._tasks:
            self._progress.remove_task(self._tasks.popitem()[1])
        if self._expected and self._reasons:
            self.console.print(f"{len(self._reasons)} of {len(self._expected)} runs failed:", style="red")
            for name, reason in self._reasons.items():
                self.console.print(f"  {name}: {reason.strip().splitlines()[-1]}", style="red")
        self._expected, self._reasons, self._done = set(), {}, set()

    def expect(self, names: Iterable[str], left: Callable[[], float | None]) -> None:
        """Tells which runs are still to come in this command, and how many seconds are left, if that is known."""
        self._expected = self._done | self._reasons.keys() | set(names)
        self._left = left

    def so_far(self) -> str:
        """How many of how many runs are done, what failed and how long the others take, in a line."""
        if not self._expected:
            return ""
        failed, left = len(self._reasons), self._left()
        time_left = "" if left is None or len(self._done) + failed == len(self._expected) else spoken_seconds(left)
        return f"{len(self._done)} of {len(self._expected)} runs done, {failed} failed" + (
            f", about {time_left} left" if time_left else ""
        )

    def say(self, line: str, style: str | None = None) -> None:
        """Prints a line, above the bars if there are any."""
        self.console.print(line, style=style)

    def prepare(self, what: str, share: float) -> None:
        """Progress of preparation, see `superpose.data.workers.Progress`."""
        task, now = self._task("prepare", 1.0, "{:.0%}"), time.monotonic()
        if share == 0:  # a part of the work begins, which has a pace of its own
            self._progress.reset(task)
            self._part_began = now
        self._progress.update(task, description=what, completed=share)
        if not self._live and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = spoken_seconds((now - self._part_began) * (1 - share) / share) if share else ""
            self.console.print(f"{what} ({share:.0%}{left and f', about {left} left'})")

    def record(self, name: str, total_steps: int, record: dict[str, Any]) -> None:
        """A record of a run's metrics."""
        kind = record["kind"]
        if kind == "training":
            bag = record["bag_size"]
            phase = f"bags of {bag}" if record["phase"] == "superposition" else record["phase"]
            loss = f"bag loss {record['bag_loss']:.3f}" if "bag_loss" in record else f"loss {record['loss']:.3f}"
            self._progress.update(
                self._task(name, total_steps),
                completed=record["step"],
                phase=phase,
                speed=f"{_thousands(record['raw_tokens_per_second'])} tok/s",
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
            self._reasons[name] = str(record["message"])
            self.console.print(f"{name} failed: {record['message']}", style="red")
            self._ended(name)
        elif kind == "result":
            self._done.add(name)
            if name in self._tasks and self._live:
                self.console.print(f"{name}: done, validation loss {record['result']['val_loss']:.3f}")
            self._ended(name)

    def _ended(self, name: str) -> None:
        """Makes room for a run at work; lines elsewhere say how far the command is."""
        worked = name in self._tasks
        if worked:
            self._progress.remove_task(self._tasks.pop(name))
        if not self._live and self._expected and worked:
            self.console.print(self.so_far())

    def _task(self, name: str, total: float, amount: str = "{:.0f} of {:.0f}") -> TaskID:
        if name not in self._tasks:
            if "prepare" in self._tasks:  # runs begin when it is done
                self._progress.remove_task(self._tasks.pop("prepare"))
            self._tasks[name] = self._progress.add_task(name, total=total, amount=amount, phase="", speed="", status="")
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
    switched = result.get("switch", {})
    # Next-token at both places; the loss of bags before the switch is another quantity.
    if (there := switched.get("val_loss")) is not None:
        lines.append(f"validation loss at the switch (step {switched['step']:,}): {there:.4f} nats per token")
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
