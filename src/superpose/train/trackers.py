"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from superpose.errors import UserError
from superpose.train.records import Record
from superpose.train.running import Watcher

_Log = Callable[[dict[str, float], int], None]
"""Told of the numbers of a record and its step."""


class Trackers(Watcher):
    """Tells trackers of every record.

    TensorBoard writes to the run's `tensorboard/`, the others take the name of its directory.

    Args:
        wanted: their names; "auto" for TensorBoard if it is installed.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
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
        self._logs = [self._tensorboard() if name == "tensorboard" else self._service(name) for name in wanted]

    def after_record(self, record: Record) -> None:
        for log in self._logs:
            log(curves(record), record.step)

    def closed(self) -> None:
        self._closing.close()

    def _tensorboard(self) -> _Log:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.run.path / "tensorboard"))
        self._closing.callback(writer.close)

        def log(numbers: dict[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        return log

    def _service(self, name: str) -> _Log:
        service: Any = import_module(name)
        path = self.run.path
        # The same id again goes on with the same curves when a run is resumed; trackio does so by the name.
        own = {"id": path.name, "dir": str(path)} if name == "wandb" else {}
        config = self.run.recipe.model_dump(mode="json")
        service.init(project="superpose", name=path.name, resume="allow", config=config, **own)
        self._closing.callback(service.finish)
        return lambda numbers, step: service.log(numbers, step=step)


def curves(record: Record) -> dict[str, float]:
    """The numbers of a record, named `kind/name`."""
    numbers = {name: value for name, value in record.as_json().items() if isinstance(value, (int, float))}
    return {f"{record.kind}/{name}": value for name, value in numbers.items() if name != "step"}
