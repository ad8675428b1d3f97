"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from superpose.errors import UserError

Tracker = Literal["tensorboard", "wandb", "trackio"]

_AXES = {"kind", "step", "phase", "message"}
"""What of a record is no curve."""

Listener = Callable[[dict[str, Any]], None]


def open_trackers(wanted: Sequence[Tracker] | Literal["auto"], run: Path, settings: dict[str, Any]) -> Trackers:
    """Trackers that are told of every record; to be closed when the run ends.

    Args:
        wanted: their names; "auto" for TensorBoard if it is installed.
        run: the run's directory; TensorBoard writes to its `tensorboard/`, the others take its name.
        settings: the resolved recipe.

    Raises:
        UserError: one is not installed.
    """
    if wanted == "auto":
        wanted = ["tensorboard"] if find_spec("tensorboard") else []
    for name in wanted:
        if find_spec(name) is None:
            raise UserError(f"train.track: {name} is not installed; pip install {name}")
    opened = Trackers()
    for name in wanted:
        opened.add(*_OPEN[name](run, settings))
    return opened


class Trackers:
    """Several listeners as one."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._listeners: list[Listener] = []

    def add(self, listener: Listener, close: Callable[[], object]) -> None:
        self._listeners.append(listener)
        self._closing.callback(close)

    def __call__(self, record: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener(record)

    def close(self) -> None:
        self._closing.close()


def curves(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record, named `kind/name`."""
    return {
        f"{record['kind']}/{name}": value
        for name, value in record.items()
        if name not in _AXES and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _tensorboard(run: Path, settings: dict[str, Any]) -> tuple[Listener, Callable[[], object]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))

    def listen(record: dict[str, Any]) -> None:
        for name, value in curves(record).items():
            writer.add_scalar(name, value, record["step"])

    return listen, writer.close


def _wandb(run: Path, settings: dict[str, Any]) -> tuple[Listener, Callable[[], object]]:
    import wandb

    # The same id again goes on with the same curves when a run is resumed.
    opened = wandb.init(project="superpose", name=run.name, id=run.name, resume="allow", dir=str(run), config=settings)
    return lambda record: opened.log(curves(record), step=record["step"]), opened.finish


def _trackio(run: Path, settings: dict[str, Any]) -> tuple[Listener, Callable[[], object]]:
    import trackio

    trackio.init(project="superpose", name=run.name, resume="allow", config=settings)
    return lambda record: trackio.log(curves(record), step=record["step"]), trackio.finish


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
