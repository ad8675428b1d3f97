"""A run under way: what its steps cost, where its records go, what watches it, and how it is stopped."""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from superpose.core.accounting import Cost, cost
from superpose.core.stage import Stage, Step
from superpose.data.store import TokenStore
from superpose.models.build import model_flops_per_latent
from superpose.train.checkpoint import Checkpoints, Progress
from superpose.train.config import Recipe
from superpose.train.distributed import Ranks
from superpose.train.hardware import matmul_peak, peak_memory
from superpose.train.records import Record, Result, Training, Validation, Warned
from superpose.train.step import HeldOutLoss, StepResult, TrainState

Listener = Callable[[dict[str, Any]], None]
"""Told of every record that goes into metrics.jsonl, and of a `Started` and a `Pace`, which do not."""


class Watcher:
    """Watches a run; each kind fills in the moments it wants.

    started -> after_step, before_record, after_record ... -> before_finish -> closed

    Whatever a moment raises ends the run. It has to be raised on all ranks, see `superpose.train.distributed.Ranks`.
    """

    run: "Running"

    def started(self) -> None:
        """All is built and restored, and nothing trained yet."""

    def after_step(self, done: int, result: StepResult) -> None:
        """So many steps are done. To read a value of `result` makes a device wait."""

    def before_record(self, record: Record) -> Record:
        """The record as it is to be written."""
        return record

    def after_record(self, record: Record) -> None:
        """It is written."""

    def before_finish(self, result: Result) -> Result:
        """The result as rank 0 is to write it."""
        return result

    def closed(self) -> None:
        """The run has ended, whatever way."""


class Clock:
    """Seconds spent training, without start-up, validation and checkpoints; `seconds` before this start of the run."""

    def __init__(self, seconds: float) -> None:
        self._spent = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._spent + (0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of a block out, whether it stands in one that is counted or not."""
        counted = self._since is not None
        self._spent, self._since = self.seconds, None
        yield
        self._since = time.perf_counter() if counted else None


@dataclass
class Running:
    """A run on this rank.

    Attributes:
        path: the run's directory.
        progress: how far it was when it was started or resumed.
        listeners: told of each record, in this order; none but on rank 0.
    """

    path: Path
    recipe: Recipe
    store: TokenStore
    state: TrainState
    checkpoints: Checkpoints
    progress: Progress
    watchers: Sequence[Watcher]
    listeners: Sequence[Listener]

    def __post_init__(self) -> None:
        self.windows = self.recipe.windows(self.store.train)
        self.clock = Clock(self.progress.seconds)
        shapes = {self._shape(stage) for stage, _ in self.windows.schedule.counts()}
        self._flops_of = {shape: model_flops_per_latent(self.state.model, *shape) for shape in shapes}
        self._peak = matmul_peak(self.ranks.device, self.recipe.train.precision) * self.ranks.world_size
        self._since = self.progress
        self.validation_seconds: float | None = None
        """What the last validation took; none was yet."""
        for watcher in self.watchers:
            watcher.run = self

    @property
    def ranks(self) -> Ranks:
        return self.state.ranks

    def window(self, step: int) -> Tensor:
        """This rank's windows of a step, on their way to the device."""
        window = self.windows.read(self.store.train.tokens, step, self.ranks.rank, self.ranks.world_size)
        if self.ranks.device.type == "cuda":
            return window.pin_memory().to(self.ranks.device, non_blocking=True)
        return window.to(self.ranks.device)

    def tell(self, record: Record) -> None:
        """Writes a record, and tells of it whoever listens."""
        for watcher in self.watchers:
            record = watcher.before_record(record)
        for listener in self.listeners:
            listener(record.as_json())
        for watcher in self.watchers:
            watcher.after_record(record)

    def warn(self, step: int, message: str) -> None:
        self.tell(Warned(step=step, message=message))

    def training(self, done: int, step: Step, lr: float, results: Sequence[StepResult]) -> Training:
        """The record of the steps since the last one, of all ranks together."""
        ranks, since, last = self.ranks, self._since, results[-1]
        # Losses of other bag sizes, where each step draws its own, are other quantities.
        sizes = map(self.windows.schedule.bag_size_at, range(done - len(results), done))
        alike = [result for result, size in zip(results, sizes, strict=True) if size == step.bag_size]
        loss = float(ranks.mean(torch.stack([result.loss for result in alike])).mean())
        extra = [result.extra_loss for result in alike if result.extra_loss is not None]  # all of a stage, or none
        load = None if last.expert_load is None else ranks.mean(last.expert_load)
        factor = self.recipe.train.embedding_lr_factor
        now = self._since = Progress(done, self.clock.seconds)
        before, spent = self._spent(since.step), self._spent(done)
        raw_tokens = self.windows.raw_tokens(done)
        seconds = max(now.seconds - since.seconds, 1e-9)
        return Training(
            step=done,
            phase=step.phase,
            bag_size=step.bag_size,
            loss=loss if step.bag_size == 1 else None,
            bag_loss=None if step.bag_size == 1 else loss,
            lr=lr,
            embedding_lr=None if factor == 1 else lr * factor,
            grad_norm=float(last.grad_norm),
            router_loss=None if last.router_loss is None else float(ranks.mean(last.router_loss)),
            extra_loss=float(ranks.mean(torch.stack(extra)).mean()) if extra else None,
            expert_load_max=None if load is None else float(load.max() * len(load)),
            expert_load_min=None if load is None else float(load.min() * len(load)),
            raw_tokens=raw_tokens,
            latents=spent.latents,
            seconds=now.seconds,
            raw_tokens_per_second=(raw_tokens - self.windows.raw_tokens(since.step)) / seconds,
            latents_per_second=(spent.latents - before.latents) / seconds,
            mfu=(spent.flops - before.flops) / seconds / self._peak,
            memory=peak_memory(ranks.device),
        )

    def validation(self, done: int, held_out: HeldOutLoss) -> Validation:
        return Validation(step=done, **self._measured(done, held_out))

    def result(self, held_out: HeldOutLoss, compile_seconds: float) -> Result:
        """What came out of the whole run."""
        steps, world_size = self.recipe.train.steps, self.ranks.world_size
        width = self.state.model.get_output_embeddings().weight.shape[1]  # type: ignore[operator]  # of transformers
        most = max(stage.extra_heads for stage in self.recipe.schedule.stages)
        return Result(
            **self._measured(steps, held_out),
            ends_in_superposition=self.windows.schedule.ends_in_superposition,
            steps=steps,
            epochs=self.windows.epochs,
            source_epochs=self.windows.source_epochs or None,
            compile_seconds=compile_seconds,
            mfu=self._spent(steps).flops / max(self.clock.seconds, 1e-9) / self._peak,
            peak_memory=max(self.ranks.gather(peak_memory(self.ranks.device))),
            ranks=world_size,
            parameters=sum(parameter.numel() for parameter in self.state.model.parameters()),
            extra_parameters=most * width**2 or None,
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("superpose", "torch", "transformers", "tokenizers")},
            },
        )

    def _measured(self, done: int, held_out: HeldOutLoss) -> dict[str, Any]:
        """The fields of `superpose.train.records.Measured`."""
        spent, raw_tokens = self._spent(done), self.windows.raw_tokens(done)
        return {
            **{f"val_{name}": value for name, value in held_out._asdict().items()},
            **{"raw_tokens": raw_tokens, "latents": spent.latents, "flops": spent.flops, "seconds": self.clock.seconds},
        }

    def _spent(self, until: int) -> Cost:
        flops_of, latents = self._flops_of, self.recipe.latents_per_step
        return cost(self.windows.schedule, latents, lambda stage: flops_of[self._shape(stage)], until)

    def _shape(self, stage: Stage) -> tuple[int, int]:
        """What the FLOPs of a latent depend on: the latents of a row, and the extra heads."""
        return self.windows.shape(stage)[1], stage.extra_heads


SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
"""By which a cluster's scheduler says that time is up; SIGUSR1 is what jobs ask Slurm to send some time before."""
_TOGETHER = 5.0


class StoppedError(Exception):
    """A run was asked to stop and did, with a checkpoint of its last step."""

    def __init__(self, number: int, step: int) -> None:
        self.signal = signal.Signals(number)
        self.step = step
        super().__init__(f"stopped by {self.signal.name} after step {step}, which is saved")

    @property
    def exit_code(self) -> int:
        """As shells report a process that a signal ended."""
        return 128 + self.signal


class StopRequest:
    """Which signal asked this process to stop; 0 for none."""

    number: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes SIGTERM, SIGUSR1 and SIGINT instead of ending at once; the same signal a second time ends at once.

    Several may come together: a terminal or a scheduler sends one to all processes, and what started them, such as
    torchrun, passes it on or sends another. So a scheduler's second one comes `_TOGETHER` seconds after
    the first, or is the same.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread of a process can handle signals
        return

    came: dict[int, float] = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.number = request.number or number
        now = time.monotonic()
        if number in SCHEDULERS and now - came.setdefault(number, now) < _TOGETHER:
            return
        signal.signal(number, before[signal.Signals(number)])
        if number in SCHEDULERS:  # this is the second one already
            os.kill(os.getpid(), number)

    handlers = ((number, signal.getsignal(number)) for number in (*SCHEDULERS, signal.SIGINT))
    # What started this process may have it ignore one, as a shell does with SIGINT in the background.
    before = {number: handler for number, handler in handlers if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Makes a scheduler's signal unwind this process, as Ctrl-C does, so that it stops first what it has started.

    It raises SystemExit with the exit code of shells; the same signal a second time ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    # One that somebody else handles is theirs.
    ours = [number for number in SCHEDULERS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
