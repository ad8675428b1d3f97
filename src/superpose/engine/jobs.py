"""What an engine is asked to do, and what is heard of it.

    Job -> submit -> Event, Event, ...: its records, then what it returned or why it failed

A job is a call of a module's function, `work(tell, *arguments)`, that travels as bytes: only where it is done does it
import what it needs. What it tells is heard while it works.

Calls, records and exceptions are pickled, because they go from one process of this program to another: through a pipe
or by Ray, never by way of a file. Nothing that is read from a disk is unpickled.
"""

import pickle
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from superpose.errors import UserError

Tell = Callable[[Any], None]
"""What a job says records with."""


class LostError(UserError):
    """What did a job is gone without a word: killed, out of memory, or its machine was lost."""


@dataclass(frozen=True)
class Resources:
    """What a job has to itself: CPU cores, and GPUs, of which a share below 1 is of one that several jobs use."""

    cores: int = 1
    gpus: float = 0

    @property
    def ranks(self) -> int:
        """Processes that do the job together: one for each of several GPUs."""
        return max(1, int(self.gpus))


@dataclass(frozen=True)
class Job:
    """A call to be made elsewhere; `Job.of` makes one.

    Attributes:
        call: the function and its arguments, pickled.
        resources: what it needs.
        imports: modules to have ready where several jobs import them; those that cannot be imported are passed over.
        alone: whether it has a process of its own, which can be stopped; else it shares one with other jobs.
    """

    call: bytes
    resources: Resources = Resources()
    imports: tuple[str, ...] = ()
    alone: bool = True

    @classmethod
    def of(cls, work: Callable[..., Any], *arguments: Any, **settings: Any) -> Self:
        """The job to call `work(tell, *arguments)`; `settings` are the job's other attributes."""
        return cls(pickle.dumps((work, arguments)), **settings)


Kind = Literal["record", "done", "failed"]


@dataclass(frozen=True)
class Event:
    """What is heard of a job: a record, or as the last what it returned or the exception that ended it."""

    key: str
    kind: Kind
    value: Any


class Engine(ABC):
    """Does jobs; a context manager, which may be entered again. What is under way when it is left is stopped."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def room(self, count: int, jobs: int = 0, on_gpu: bool = False) -> tuple[int, Resources]:
        """How many of `count` equal jobs to submit at a time, and what each of them has.

        Args:
            jobs: at a time as the user says; 0 for as many as there is room for.
            on_gpu: whether each needs a GPU.

        Raises:
            UserError: there is no room for one.
        """

    def together(self, at_a_time: int, resources: Resources) -> int:
        """How many of so many equal jobs that are submitted are done at once; the others wait inside the engine."""
        return at_a_time

    def share(self, path: Path) -> None:  # noqa: B027  # processes of this machine see what this one sees
        """Expects every machine to see a file or a folder as this one does: a job on one that does not is a UserError.

        A folder is made if it does not exist.
        """

    @abstractmethod
    def call(self, work: Callable[..., Any], *arguments: Any, on_gpu: bool = False) -> Any:
        """What a function returns, or raises, on a machine that does jobs. Nothing may be under way."""

    @abstractmethod
    def submit(self, key: str, job: Job) -> None:
        """Has a job done; what is heard of it bears the key, which no other job under way has."""

    @abstractmethod
    def heard(self) -> Event:
        """Waits for what is heard next of the jobs under way, of which there is at least one."""

    @abstractmethod
    def cancel(self, *keys: str) -> None:
        """Stops jobs that are under way, and hears no more of them. One with a process of its own gets SIGTERM."""


def without_records(tell: Tell, work: Callable[..., Any], *arguments: Any) -> Any:
    """The call of a function that tells nothing, as a job's."""
    return work(*arguments)


def carry_out(call: bytes, tell: Tell) -> tuple[Kind, Any]:
    """Makes a job's call: "done" and what it returned, or "failed" and the exception, with a note of where it was."""
    try:
        work, arguments = pickle.loads(call)  # noqa: S301  # of `Job.of` in the process that submitted it
        return "done", work(tell, *arguments)
    except Exception as error:
        return "failed", _portable(error)


def _portable(error: Exception) -> Exception:
    """An exception that other processes can be sent."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # made here: whether it can be done at all
    except Exception:
        error = RuntimeError(str(error))
    if not isinstance(error, UserError):
        error.add_note(f"in another process:\n{trace}")
    return error
