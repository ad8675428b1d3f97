"""A Ray cluster. Ray places the work, starts it again where a node is lost, and brings back what came of it.

    Ray.submit -> a task of Ray's with its cores and GPUs -> on that node a process of its own (superpose.engine.local)
    Ray.heard  <- the mailbox, an actor, of records       <-
               <- the task's value                        <- what the job returned

A run that was lost is begun again from its last checkpoint, because that is what training does; Ray tries a few times.
Ray is imported when a cluster is first used.
"""

import asyncio
import logging
import os
import platform
import queue
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any

from superpose import __version__
from superpose.engine.jobs import Engine, Event, Job, Kind, LostError, Resources, carry_out, without_records
from superpose.engine.local import Local
from superpose.errors import UserError, first_line, missing_package
from superpose.files import file_sha256, write_text

_AT_ONCE = 1000
"""Jobs that Ray is given at a time, unless somebody says: enough to keep a cluster busy, and the driver stays small."""
_TRIES = 5
"""More than these times nobody loses the same run by chance."""
_SECONDS_TO_STOP = 30
_SECONDS_TO_ANSWER = 10
_SECONDS_TO_JOIN = 60

Mark = tuple[str, str]
"""A file that every node has to see, and the hash of what it holds."""


class Ray(Engine):
    """The nodes of a Ray cluster.

    Args:
        address: "auto" for the cluster this machine is part of, or "ray://HOST:PORT".
        cores: of each job; 0 for one.
        gpus: of each job that needs any; 0 for one.
    """

    def __init__(self, address: str = "auto", cores: int = 0, gpus: float = 0) -> None:
        self._address, self._cores, self._gpus = address, cores, gpus

    def __enter__(self) -> "Ray":
        try:
            import ray
        except ModuleNotFoundError as error:
            raise missing_package(error) from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                _knock(os.environ.get("RAY_ADDRESS", "auto") if self._address == "auto" else self._address)
                ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError, AssertionError) as error:
                raise UserError(
                    f"no Ray cluster answers at {self._address} ({first_line(error)}); "
                    f"start one with 'ray start --head', or give its address as --engine ray://HOST:PORT"
                ) from None
        # Each time it is entered: marks are removed when it is left, and what was still to be heard is of no interest.
        self._marks: list[Mark] = []
        self._written: list[Path] = []
        self._shared_paths: set[Path] = set()
        self._tasks: dict[str, Any] = {}
        self._answers: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._events: deque[Event] = deque()
        self._ended: list[Event] = []
        self._asking = False
        self._letters: dict[int, tuple[Sequence[tuple[str, Any]], Sequence[Event]]] = {}
        self._next = "", 0
        # One of each kind and size for all jobs: making one takes Ray as long as handing a job to it.
        self._work: dict[tuple[bool, Resources], Any] = {}
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(_Mailbox).remote()
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel(*self._tasks)
        self._ray.kill(self._mailbox)
        for mark in self._written:
            mark.unlink(missing_ok=True)
        if self._ours:
            self._ray.shutdown()

    def room(self, count: int, jobs: int = 0, on_gpu: bool = False) -> tuple[int, Resources]:
        if self._gpus and not on_gpu:
            raise UserError("--gpus-per-run is of runs on GPUs; choose them with --set train.device=cuda")
        each = Resources(self._cores or 1, (self._gpus or 1) if on_gpu else 0)
        waited = 0
        while True:
            nodes = self._nodes()
            if any(_fitting(node, each) for node in nodes):
                return min(jobs or _AT_ONCE, count), each
            # Some may be on their way, such as those that take the place of others.
            if waited == _SECONDS_TO_JOIN:
                break
            time.sleep(1)
            waited += 1
        most = [max((node.get(kind, 0) for node in nodes), default=0) for kind in ("CPU", "GPU")]
        raise UserError(
            f"no node of the Ray cluster has {each.cores} cores and {each.gpus:g} GPUs for a run; "
            f"there are at most {most[0]:g} and {most[1]:g}"
        )

    def together(self, at_a_time: int, resources: Resources) -> int:
        return max(1, min(at_a_time, sum(_fitting(node, resources) for node in self._nodes())))

    def _nodes(self) -> list[dict[str, float]]:
        """What each node has."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def share(self, path: Path) -> None:
        path = path.resolve()
        if path in self._shared_paths:
            return
        self._shared_paths.add(path)
        if not path.is_file():
            # One that nobody else has, so that no copy of the folder passes for it.
            path.mkdir(parents=True, exist_ok=True)
            path = path / f".seen-{secrets.token_hex(8)}"
            write_text(path, path.name)
            self._written.append(path)
        self._marks.append((str(path), file_sha256(path)))

    def call(self, work: Callable[..., Any], *arguments: Any, on_gpu: bool = False) -> Any:
        _, resources = self.room(1, on_gpu=on_gpu)
        self.submit("call", Job.of(without_records, work, *arguments, resources=resources, alone=False))
        event = self.heard()
        if event.kind == "failed":
            raise event.value
        return event.value

    def submit(self, key: str, job: Job) -> None:
        kind = job.alone, job.resources
        if kind not in self._work:
            needs = {"num_cpus": job.resources.cores, "num_gpus": job.resources.gpus}
            retried = {"max_retries": _TRIES, "retry_exceptions": [LostError]}
            self._work[kind] = self._ray.remote(**needs, **retried)(_alone if job.alone else _shared)
        reference = self._work[kind].remote(__version__, self._marks, job, key, self._mailbox)
        self._tasks[key] = reference
        self._when_known("task", key, reference)

    def heard(self) -> Event:
        while not self._events:
            what, about, future = self._answers.get()
            if what == "records":
                self._read(future, [])
                self._listen()
            elif what == "rest":
                self._read(future, about)
                self._asking = False
            elif about in self._tasks:
                self._ended.append(self._ending(about, future))
            if self._ended and not self._asking:
                # Their last records are on their way, and come first. One question serves all that ended meanwhile.
                self._when_known("rest", self._ended, self._mailbox.rest.remote())
                self._ended, self._asking = [], True
        event = self._events.popleft()
        if event.kind != "record":
            self._tasks.pop(event.key, None)
        return event

    def cancel(self, *keys: str) -> None:
        references = [self._tasks.pop(key) for key in keys]
        for reference in references:
            self._ray.cancel(reference, force=False)
        # A run that is told to stop saves itself, which takes a while.
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=_SECONDS_TO_STOP)
        self._events = deque(event for event in self._events if event.key not in keys)
        self._ended = [event for event in self._ended if event.key not in keys]

    def _listen(self) -> None:
        self._when_known("records", [], self._mailbox.take.remote())

    def _when_known(self, what: str, about: Any, reference: Any) -> None:
        answers = self._answers
        reference.future().add_done_callback(lambda future: answers.put((what, about, future)))

    def _read(self, future: Any, ended: Sequence[Event]) -> None:
        """Takes a letter of the mailbox, and the ends of jobs whose last records are in it or in one before.

        Ray may bring two letters in any order. They are read in that in which they were written.
        """
        try:
            mailbox, number, records = future.result()
        except self._ray.exceptions.RayError:
            # If the mailbox is lost with its node, Ray makes another; what was in it was for eyes only.
            self._read_all()
            self._deliver([], ended)
            return
        if mailbox != self._next[0]:
            self._read_all()
            self._next = mailbox, 0
        self._letters[number] = records, ended
        while self._next[1] in self._letters:
            self._deliver(*self._letters.pop(self._next[1]))
            self._next = mailbox, self._next[1] + 1

    def _read_all(self) -> None:
        """Letters that wait for one before them, which will not come any more."""
        for number in sorted(self._letters):
            self._deliver(*self._letters.pop(number))

    def _deliver(self, records: Sequence[tuple[str, Any]], ended: Sequence[Event]) -> None:
        self._events += (Event(key, "record", record) for key, record in records if key in self._tasks)
        self._events += (event for event in ended if event.key in self._tasks)

    def _ending(self, key: str, future: Any) -> Event:
        try:
            kind, value = future.result()
        except self._ray.exceptions.RayTaskError as error:
            kind, value = "failed", error.cause if isinstance(error.cause, UserError) else error
        except self._ray.exceptions.RayError as error:
            kind, value = "failed", LostError(f"its process or its node was lost {_TRIES} times ({first_line(error)})")
        return Event(key, kind, value)


def _fitting(node: Mapping[str, float], each: Resources) -> int:
    """Jobs that a node has room for at once."""
    by_gpus = node.get("GPU", 0) / each.gpus if each.gpus else inf
    return int(min(node.get("CPU", 0) / each.cores, by_gpus))


def _knock(address: str) -> None:
    """Raises an OSError if nobody answers at HOST:PORT, where Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


class _Mailbox:
    """An actor that records wait in until they are taken, in letters that bear its name and a number."""

    def __init__(self) -> None:
        self._name, self._written = secrets.token_hex(8), 0
        self._records: list[tuple[str, Any]] = []
        self._some = asyncio.Event()

    async def put(self, key: str, records: Sequence[Any]) -> None:
        self._records += [(key, record) for record in records]
        self._some.set()

    async def take(self) -> tuple[str, int, list[tuple[str, Any]]]:
        """All of them, as soon as there are any."""
        await self._some.wait()
        return await self.rest()

    async def rest(self) -> tuple[str, int, list[tuple[str, Any]]]:
        """All of them."""
        taken, self._records = self._records, []
        self._some.clear()
        self._written += 1
        return self._name, self._written - 1, taken


def _alone(version: str, marks: Sequence[Mark], job: Job, key: str, mailbox: Any) -> tuple[Kind, Any]:
    """What a task does on a node for a job with a process of its own: it starts that, and hands its records on."""
    import ray

    _expect(version, marks)
    records: list[Any] = []
    sent = mailbox.put.remote(key, records)
    with Local(devices=[str(gpu) for gpu in ray.get_gpu_ids()]) as engine:
        engine.submit(key, job)
        while (event := engine.heard()).kind == "record":
            records.append(event.value)
            # One letter after the other, or they might overtake each other.
            if ray.wait([sent], timeout=0)[0]:
                sent, records = mailbox.put.remote(key, records), []
    ray.wait([sent], timeout=_SECONDS_TO_STOP)
    ray.wait([mailbox.put.remote(key, records)], timeout=_SECONDS_TO_STOP)
    if isinstance(event.value, LostError):
        raise event.value
    return event.kind, event.value


def _shared(version: str, marks: Sequence[Mark], job: Job, key: str, mailbox: Any) -> tuple[Kind, Any]:
    """What a task does for one of many small jobs: it does it itself."""
    _expect(version, marks)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return carry_out(job.call, lambda record: None)


def _expect(version: str, marks: Sequence[Mark]) -> None:
    """Raises a UserError if this node is not one that work can be done on."""
    if version != __version__:
        raise UserError(
            f"{platform.node()} has superpose {__version__} and this machine {version}; install the same on all nodes"
        )
    for mark, content in marks:
        path = Path(mark)
        if not path.is_file() or file_sha256(path) != content:
            raise UserError(
                f"{platform.node()}, a node of the Ray cluster, does not see {path.parent} as this machine does; "
                f"put it on a file system that all nodes see"
            )
