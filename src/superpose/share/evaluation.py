"""What a run's evaluation.json says of its model, where one lies in its directory: the figures a card shows.

Another command writes the file, so only what is understood is taken from it; the rest is passed over.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, FiniteFloat, ValidationError

from superpose.errors import UserError
from superpose.files import read_json
from superpose.results.tables import Row


class _Figure(BaseModel):
    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    def spoken(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.value:.4g}{interval}"


class _Scores(BaseModel):
    """Of one model."""

    name: str
    loss: _Figure | None = None
    bits_per_byte: _Figure | None = None
    accuracy: _Figure | None = None


class _Subject(BaseModel):
    """A text or a task, and each model's scores."""

    name: str
    models: list[_Scores]


class _Evaluation(BaseModel):
    texts: list[_Subject] = []
    tasks: list[_Subject] = []


def evaluated(run: Path) -> tuple[Row, ...]:
    """What was scored, in what unit, and the figure with its 95 % interval, of the model a run ended with."""
    path = run / "evaluation.json"
    try:
        found = _Evaluation.model_validate(read_json(path)) if path.is_file() else _Evaluation()
    except (UserError, ValidationError):
        return ()
    units = {"loss": "nats per token", "bits_per_byte": "bits per byte", "accuracy": "share right"}
    rows: list[Row] = []
    for subject in (*found.texts, *found.tasks):
        scores = _of(run, subject.models)
        for name, unit in units.items():
            figure: _Figure | None = getattr(scores, name, None)
            if figure is not None:
                rows.append((subject.name, unit, figure.spoken()))
    return tuple(rows)


def _of(run: Path, models: list[_Scores]) -> _Scores | None:
    """This run's among several models, which are called by the ends of their paths."""
    mine = models if len(models) == 1 else [one for one in models if Path(one.name).name == run.resolve().name]
    return mine[0] if len(mine) == 1 else None
