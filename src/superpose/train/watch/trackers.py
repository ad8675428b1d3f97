"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from superpose.errors import UserError
from superpose.train.records import Record
from superpose.train.watch.watcher import Watcher

Tracker = Literal["tensorboard", "wandb", "trackio"]

_Log = Callable[[dict[str, float], int], None]
"""Told of the numbers of a record and its step."""


class Trackers(Watcher):
    """Tells trackers of every record.

    TensorBoard writes to the run's `tensorboard/`, the others take the name of its directory.

    Args:
        wanted: their names; "auto" for TensorBoard if it is installed.
    """

    def __init__(self, wanted: Sequence[Tracker] | Literal["auto"]) -> None:
        self._wanted = wanted
        self._closing = ExitStack()
        self._logs: list[_Log] = []

    def started(self) -> None:
        """
        Raises:
            UserError: one is not installed.
        """
        wanted = self._wanted
        if wanted == "auto":
            wanted = ["tensorboard"] if find_spec("tensorboard") else []
        for name in wanted:
            if find_spec(name) is None:
                raise UserError(f"train.track: {name} is not installed; pip install {name}")
        for name in wanted:
            log, close = _OPEN[name](self.run.path, self.run.recipe.model_dump(mode="json"))
            self._logs.append(log)
            self._closing.callback(close)

    def after_record(self, record: Record) -> None:
        for log in self._logs:
            log(curves(record), record.step)

    def closed(self) -> None:
        self._closing.close()


def curves(record: Record) -> dict[str, float]:
    """The numbers of a record, named `kind/name`."""
    numbers = {name: value for name, value in record.as_json().items() if isinstance(value, (int, float))}
    return {f"{record.kind}/{name}": value for name, value in numbers.items() if name != "step"}


def _tensorboard(run: Path, settings: dict[str, Any]) -> tuple[_Log, Callable[[], object]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(run: Path, settings: dict[str, Any]) -> tuple[_Log, Callable[[], object]]:
    import wandb

    # The same id again goes on with the same curves when a run is resumed.
    opened = wandb.init(project="superpose", name=run.name, id=run.name, resume="allow", dir=str(run), config=settings)
    return lambda numbers, step: opened.log(numbers, step=step), opened.finish


def _trackio(run: Path, settings: dict[str, Any]) -> tuple[_Log, Callable[[], object]]:
    import trackio

    trackio.init(project="superpose", name=run.name, resume="allow", config=settings)
    return lambda numbers, step: trackio.log(numbers, step=step), trackio.finish


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
