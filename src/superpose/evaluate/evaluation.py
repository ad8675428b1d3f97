"""An evaluation: what several models make of the same texts and tasks, as it stands in evaluation.json.

Intervals are at 95 %. `minus_first` is the difference to the first model, paired by document or by question; the first
itself has none.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, FiniteFloat, SerializerFunctionWrapHandler, model_serializer

from superpose.data.account import Drops
from superpose.files import read_json
from superpose.results.intervals import Interval
from superpose.train.records import checked


class _Figures(BaseModel):
    """Figures of which some may not be there; those are left out of the file."""

    @model_serializer(mode="wrap")
    def _there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class ModelFigures(BaseModel):
    """A model that was evaluated: the path of its run or directory, its `model_type`, and its tokenizer's entries."""

    name: str
    path: str
    model: str
    parameters: int
    context: int | None
    vocabulary: int


class PositionFigures(_Figures):
    """A model's loss where it has `first` to `last` tokens of context, in nats per token."""

    first: int
    last: int
    tokens: int
    loss: Interval
    minus_first: Interval | None = None


class TextFigures(_Figures):
    """How well a model predicts a text: `loss` in nats per token, `minus_first` in bits per byte."""

    name: str
    loss: Interval
    bits_per_byte: Interval
    tokens: int
    by_position: list[PositionFigures]
    document_nats: list[FiniteFloat]
    document_tokens: list[int]
    minus_first: Interval | None = None


class Document(BaseModel):
    """A document of a text: its first words, and its size in UTF-8."""

    starts: str
    bytes: int


class Text(BaseModel):
    """A text, what could not be read of it, and how well each model predicts it."""

    name: str
    documents: list[Document]
    dropped: Drops = {}
    models: list[TextFigures]


class PairedShares(BaseModel):
    """Difference of two shares of right answers over the same items.

    Attributes:
        difference: second minus first, with the adjusted Wald interval for pairs (Agresti and Min, 2005).
        p: of McNemar's exact test, two-sided: how likely so uneven a split of the items on which the two differ is,
            if both were equally good.
    """

    difference: Interval
    p: FiniteFloat


class TaskFigures(_Figures):
    """A model's share of right answers, by the likelihood of a choice and by that per byte; `right` is 1s and 0s."""

    name: str
    accuracy: Interval
    accuracy_by_byte: Interval | None = None
    minus_first: PairedShares | None = None
    right: list[int]


class Task(BaseModel):
    """A task of so many questions, the share that a guess gets right, and each model's answers."""

    name: str
    chance: FiniteFloat
    items: int
    models: list[TaskFigures]


class Evaluation(BaseModel):
    """Figures of one or several models, in the same order everywhere, on rows of `latents` tokens."""

    models: list[ModelFigures]
    latents: int
    texts: list[Text]
    tasks: list[Task]
    versions: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads an evaluation.json.

        Raises:
            UserError: it is missing or was altered.
        """
        return checked(cls, read_json(path), path)
