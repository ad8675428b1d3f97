"""Processes of this machine: what starts any does it here.

    Local.submit -> a process, or one for each of its GPUs -> messages through a pipe to each -> Local.heard

A process that is gone leaves its pipe at an end, so nothing is asked in vain, and a kill in the middle of a message
harms no other. Processes follow the one that started them: when it is gone, they are told to stop.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import ceil
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType, TracebackType
from typing import Any

from superpose.engine.jobs import Engine, Event, Job, LostError, Resources, carry_out
from superpose.errors import UserError

_GPUS = "CUDA_VISIBLE_DEVICES"


def available_cores() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Local(Engine):
    """Processes of this machine. A job that needs GPUs has its own, chosen here; cores are as many as it is told.

    Args:
        cores: of each job; 0 to divide those there are among the jobs at a time.
        gpus: of each job that needs any; 0 for one.
        devices: the GPUs there are, as CUDA_VISIBLE_DEVICES names them; by default all that this process sees.
    """

    def __init__(self, cores: int = 0, gpus: float = 0, devices: Sequence[str] | None = None) -> None:
        self._cores, self._gpus = cores, gpus
        self._devices = devices
        self._used: dict[str, float] = {}
        self._working: dict[str, _Working] = {}
        self._of_pipe: dict[Connection, str] = {}
        self._idle: list[_Process] = []
        self._events: deque[Event] = deque()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel(*self._working)
        _end(self._idle)
        self._idle.clear()

    def room(self, count: int, jobs: int = 0, on_gpu: bool = False) -> tuple[int, Resources]:
        cores, gpus = available_cores(), 0.0
        if on_gpu:
            devices = len(self.devices)
            if not devices:
                raise UserError("no GPU is to be seen here, and train.device asks for one; check nvidia-smi")
            # More jobs than GPUs, if that is asked for, share them.
            gpus = self._gpus or 1 / max(1, ceil(jobs / devices))
            fitting = int(devices // gpus) if gpus >= 1 else devices * int(1 / gpus)
            if max(jobs, 1) > fitting:
                raise UserError(
                    f"{max(jobs, 1)} at a time with {gpus:g} GPUs each do not fit on the {devices} of this machine; "
                    f"give a lower --jobs or --gpus-per-run"
                )
        else:
            if self._gpus:
                raise UserError("--gpus-per-run is of runs on GPUs; choose them with --set train.device=cuda")
            fitting = cores // self._cores if self._cores else cores
            if self._cores and max(jobs, 1) > fitting:
                raise UserError(
                    f"{max(jobs, 1)} at a time with {self._cores} cores each do not fit on the {cores} of this "
                    f"machine; give a lower --jobs or --cores-per-run"
                )
        at_a_time = max(1, min(jobs or fitting, count))
        return at_a_time, Resources(self._cores or max(1, cores // at_a_time), gpus)

    @property
    def devices(self) -> Sequence[str]:
        """The GPUs of this machine that this process may use."""
        if self._devices is None:
            import torch

            count = torch.cuda.device_count()
            named = [name.strip() for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
            self._devices = named[:count] if len(named) >= count else list(map(str, range(count)))
        return self._devices

    def call(self, work: Callable[..., Any], *arguments: Any, on_gpu: bool = False) -> Any:
        return work(*arguments)

    def submit(self, key: str, job: Job) -> None:
        assert key not in self._working
        devices = self._taken(job.resources.gpus)
        environment = {_GPUS: ",".join(devices)} if devices else {}
        if job.alone:
            context = _context(job.imports)
            processes = [_Process(context, each) for each in _ranks(job.resources.ranks, environment)]
        else:
            processes = [self._idle.pop() if self._idle else _Process(multiprocessing.get_context("spawn"))]
        self._working[key] = _Working(job, processes, devices)
        for process in processes:
            self._of_pipe[process.pipe] = key
            # One that is gone already is found out when it is heard.
            with suppress(BrokenPipeError, ConnectionResetError):
                process.pipe.send_bytes(job.call)

    def heard(self) -> Event:
        while not self._events:
            for pipe in connection.wait(list(self._of_pipe)):
                assert isinstance(pipe, Connection)
                if pipe in self._of_pipe:  # another rank may have ended its job
                    self._hear(self._of_pipe[pipe], pipe)
        return self._events.popleft()

    def cancel(self, *keys: str) -> None:
        ended = [self._forget(key) for key in keys]
        for working in ended:
            if working.job.alone:
                for process in working.processes:
                    process.process.terminate()
        # One that is shared ends what it has begun.
        _end([process for working in ended for process in working.processes])
        self._events = deque(event for event in self._events if event.key not in keys)

    def _taken(self, gpus: float) -> list[str]:
        """GPUs for a job: whole ones that nobody uses, or the one that is used least."""
        by_use = sorted(self.devices, key=lambda name: self._used.get(name, 0)) if gpus else []
        taken, share = by_use[: ceil(gpus)], min(gpus, 1)
        for name in taken:
            self._used[name] = self._used.get(name, 0) + share
        assert len(taken) == ceil(gpus)
        assert all(self._used[name] < 1.001 for name in taken), "more jobs than there is room for"
        return taken

    def _hear(self, key: str, pipe: Connection) -> None:
        working = self._working[key]
        process = next(process for process in working.processes if process.pipe is pipe)
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            process.process.join()
            code = process.process.exitcode
            kind, value = (
                "failed",
                LostError(f"its process ended with exit code {code}; it may have been out of memory"),
            )
        if kind == "record":
            self._events.append(Event(key, kind, value))
            return
        del self._of_pipe[pipe]
        working.left.remove(process)
        if process is working.processes[0]:
            working.value = value
        if kind == "done" and working.left:
            return
        if kind == "failed":
            for other in working.left:
                other.process.kill()  # it cannot save what it shared with the one that failed
        self._forget(key)
        if working.job.alone or process.process.exitcode is not None:
            _end(working.processes)
        else:
            self._idle.append(process)
        self._events.append(Event(key, kind, working.value if kind == "done" else value))

    def _forget(self, key: str) -> "_Working":
        """Takes a job from those under way, and gives its GPUs back."""
        working = self._working.pop(key)
        for process in working.left:
            self._of_pipe.pop(process.pipe, None)
        for name in working.devices:
            self._used[name] -= min(working.job.resources.gpus, 1)
        return working


class _Working:
    """A job under way: its processes, by rank, and those of them that have not ended it."""

    def __init__(self, job: Job, processes: Sequence["_Process"], devices: Sequence[str]) -> None:
        self.job, self.processes, self.devices = job, processes, devices
        self.left = list(processes)
        self.value: Any = None


class _Process:
    """A process that does what it is sent: one job if it is given an environment for it, else any number."""

    def __init__(self, context: BaseContext, environment: dict[str, str] | None = None) -> None:
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, environment)
        self.process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
        with script_left_out():
            self.process.start()
        theirs.close()


def _end(processes: Sequence[_Process]) -> None:
    """Waits for processes that have nothing more to do."""
    for process in processes:
        process.pipe.close()
    for process in processes:
        process.process.join()


def _context(imports: Sequence[str]) -> BaseContext:
    """How processes start: from one that has imported what they need, where the system can do that."""
    ways = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    context.set_forkserver_preload(list(imports))
    return context


def _ranks(count: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """The environment of each of some processes, as torchrun sets it where there are several."""
    if count == 1:
        return [environment]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = environment | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@contextmanager
def script_left_out() -> Iterator[None]:
    """Processes started in this block do not run the user's script again.

    A process that is not forked begins by importing the main module. What is worked on here is never defined there, and
    a script without `if __name__ == "__main__":` would do all once more and wait for itself. So meanwhile the main
    module is an empty one.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(pipe: Connection, environment: dict[str, str] | None) -> None:
    """What a process does."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    if environment is None:
        # Ctrl-C is for the parent, which lets its processes finish what they have begun.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # One thread each: there are as many processes as cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    else:
        os.environ.update(environment)

    def say(kind: str, value: Any) -> None:
        # Whoever started this one may be gone, or listen no more. A run goes on until it has saved itself.
        with suppress(BrokenPipeError, ConnectionResetError):
            pipe.send((kind, value))

    with suppress(EOFError, ConnectionResetError, KeyboardInterrupt):
        while True:
            say(*carry_out(pipe.recv_bytes(), lambda record: say("record", record)))
            if environment is not None:
                break


def _stop_with_parent() -> None:
    """Asks this process to stop when the one that started it is gone, whatever took that: a run saves itself first."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
