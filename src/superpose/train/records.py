"""What a run writes down: metrics.jsonl, a record a line, and result.json when it is finished.

The fields are the keys of the files, in this order; what is None is left out. Whoever writes or reads them does it
by these classes. A field with a default may be missing in files of older versions.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from superpose.errors import UserError
from superpose.files import read_json, write_text

_Kind = TypeVar("_Kind")
_Record = TypeVar("_Record", bound="Record")

_Count = Annotated[int, Field(ge=0, lt=2**100)]
_adapter = cache(TypeAdapter)  # to build one takes longer than to check hundreds of records


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line of metrics.jsonl, told after so many optimizer steps."""

    kind: ClassVar[str]
    step: _Count

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **as_json(self)}

    @classmethod
    def heard(cls, told: Mapping[str, Any]) -> Self:
        """The record of this kind that a listener is told as `as_json` gives it."""
        return cls(**{name: value for name, value in told.items() if name != "kind"})


@dataclass(frozen=True, kw_only=True)
class Training(Record):
    """The steps since the last such record; raw_tokens, latents and seconds are those since the start.

    Attributes:
        bag_size: of the last of the steps.
        loss, bag_loss: mean cross-entropy in nats, of single tokens or of bags. They are not comparable, so the two
            have different names. Where steps draw their bag sizes, the mean over those with the last one's.
        lr, embedding_lr: of the last step; the second is there where embedding and head have one of their own.
        grad_norm: of the last step, before clipping.
        extra_loss: mean cross-entropy of the extra heads, which predict further ahead.
        expert_load_max, expert_load_min: load of the busiest and the idlest expert over an even share.
        memory: bytes at most so far.
    """

    kind = "training"

    phase: str
    bag_size: int
    loss: FiniteFloat | None = None
    bag_loss: FiniteFloat | None = None
    lr: FiniteFloat | None = None
    embedding_lr: FiniteFloat | None = None
    grad_norm: FiniteFloat | None = None
    extra_loss: FiniteFloat | None = None
    router_loss: FiniteFloat | None = None
    expert_load_max: FiniteFloat | None = None
    expert_load_min: FiniteFloat | None = None
    raw_tokens: _Count | None = None
    latents: _Count | None = None
    seconds: FiniteFloat | None = None
    raw_tokens_per_second: FiniteFloat | None = None
    latents_per_second: FiniteFloat | None = None
    mfu: FiniteFloat | None = None
    memory: _Count | None = None

    @property
    def measured_loss(self) -> float:
        """Whichever of the two losses it has."""
        loss = self.bag_loss if self.loss is None else self.loss
        if loss is None:
            raise UserError(f"metrics.jsonl holds no loss for step {self.step}, so it was altered; take its line out")
        return loss


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Next-token loss on held-out text, in nats per token and bits per byte, and what was spent until then.

    Attributes:
        val_loss_by_source: on what is held out of each named source, read by itself.
        seconds: of training, without start-up, compilation, validation and the copying of checkpoints.
    """

    val_loss: FiniteFloat
    val_bits_per_byte: FiniteFloat
    raw_tokens: _Count
    latents: _Count
    flops: _Count
    seconds: FiniteFloat
    val_loss_by_source: Mapping[str, FiniteFloat] | None = None


@dataclass(frozen=True, kw_only=True)
class Validation(Measured, Record):
    """A validation; with a baseline, the step at which the loss fell below the baseline's, or may."""

    kind = "validation"

    crossed: int | None = None
    crossing_forecast: int | None = None


@dataclass(frozen=True, kw_only=True)
class Warned(Record):
    """What the user should know."""

    kind = "warning"

    message: str


@dataclass(frozen=True, kw_only=True)
class Started(Record):
    """Where this start of a run begins, after `step` steps. Told and not written: a log is that of a run never stopped.

    Attributes:
        message: whether it starts or goes on, and from what.
    """

    kind = "start"

    message: str


@dataclass(frozen=True, kw_only=True)
class Pace(Record):
    """What the first steps of this start took here, on the clock on the wall. Told and not written, as `Started`.

    Attributes:
        step_seconds: of an optimizer step.
        validation_seconds: of a validation; None if the run goes on, and none was before.
    """

    kind = "pace"

    step_seconds: FiniteFloat
    validation_seconds: FiniteFloat | None = None


@dataclass(frozen=True)
class Switch:
    """How a run took the change from bags to single tokens.

    The loss of a bag and that of a token are two quantities. The jump from one to the other is what is seen on a
    curve and reported in the paper (arXiv 2605.06546, section 4: 1 to 2 nats); it is no loss of quality by itself.

    Attributes:
        step: first step of recovery.
        bag_loss: mean training loss of the last record before it.
        spike: the first record's next-token loss over `bag_loss`, in nats.
        steps_to_recover: until a record's next-token loss was no more than `bag_loss`; None if it never was.
        val_loss: next-token, at the switch, so it can be compared with every other validation; None in older files.
    """

    step: int
    bag_loss: FiniteFloat
    spike: FiniteFloat
    steps_to_recover: int | None
    val_loss: FiniteFloat | None = None


@dataclass(frozen=True)
class Energy:
    """What rank 0's machine took since the run was started or resumed; `how` says whether that was measured."""

    kwh: FiniteFloat | None
    hours: FiniteFloat
    how: str


@dataclass(frozen=True, kw_only=True)
class Result(Measured):
    """What came out of a run: result.json.

    Attributes:
        source_epochs: passes over each named source, where stages have a mixture.
        peak_memory: bytes, of the rank that took most.
        parameters: of the model.
        extra_parameters: of extra heads, at most so many at a time, which are no part of the model.
        average_val_loss, average_val_bits_per_byte: with the moving average of the weights.
    """

    ends_in_superposition: bool = False
    steps: int | None = None
    epochs: FiniteFloat | None = None
    source_epochs: dict[str, FiniteFloat] | None = None
    compile_seconds: FiniteFloat | None = None
    mfu: FiniteFloat | None = None
    peak_memory: _Count | None = None
    energy: Energy | None = None
    ranks: int | None = None
    parameters: _Count | None = None
    extra_parameters: _Count | None = None
    versions: dict[str, str] = field(default_factory=dict)
    switch: Switch | None = None
    average_val_loss: FiniteFloat | None = None
    average_val_bits_per_byte: FiniteFloat | None = None


def as_json(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are known, as JSON takes them."""
    return {name: known for name, known in asdict(value).items() if known is not None}


def checked(kind: type[_Kind], value: Any, path: Path) -> _Kind:
    """The dataclass of what was read from `path`; a UserError if a field is missing or of another type."""
    try:
        read: _Kind = _adapter(kind).validate_python(value)  # type: ignore[arg-type]  # a class has a hash
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path} was altered: {place}: {problem['msg']}; train the run again") from None
    return read


def read_result(path: Path) -> Result:
    """Reads a result.json.

    Raises:
        UserError: it is missing or was altered.
    """
    return checked(Result, read_json(path), path)


def read_records(path: Path, kind: type[_Record]) -> list[_Record]:
    """The records of one class in a metrics.jsonl, ascending.

    Raises:
        UserError: one of them was altered.
    """
    return [checked(kind, record, path) for record in read_metrics(path) if record.get("kind") == kind.kind]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a run as they stand; a last line that was cut short by a crash is left out.

    Raises:
        UserError: a line is JSON, but no record.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise UserError(f"{path}, line {number}: no record of a step, so the file was altered; take the line out")
        records.append(record)
    return records


@contextmanager
def metrics_log(path: Path, first_step: int, origin: Path | None = None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that appends a record to a metrics.jsonl.

    A run that resumes at `first_step` drops what it recorded after the checkpoint of that step, and one that
    starts drops everything. One that takes over from another run keeps what that one recorded, in `origin`.
    """
    kept = [record for record in read_metrics(origin or path) if record["step"] <= first_step] if first_step else []
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    with path.open("a", encoding="utf-8") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()

        yield write
