"""What the steps of a run cost, and the records made of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch

from superpose.core.accounting import Cost, cost
from superpose.core.schedule import Stage
from superpose.data.windows import WindowPlan
from superpose.models.build import model_flops_per_latent
from superpose.train.clock import Clock
from superpose.train.config import TrainArgs
from superpose.train.hardware import matmul_peak, peak_memory
from superpose.train.records import Result, Training, Validation
from superpose.train.state import TrainState
from superpose.train.step import StepResult
from superpose.train.validation import HeldOut


class Meter:
    """Counts the steps of a run.

    Args:
        first: steps done before this start of the run.
    """

    def __init__(self, args: TrainArgs, windows: WindowPlan, state: TrainState, clock: Clock, first: int) -> None:
        self._windows, self._state, self._clock = windows, state, clock
        self._latents_per_step = args.latents_per_step
        latents = {windows.shape(stage)[1] for stage in windows.schedule.stages}
        self._flops_of = {length: model_flops_per_latent(state.model, length) for length in latents}
        self._peak = matmul_peak(state.ranks.device, args.precision) * state.ranks.world_size
        self._since = first, clock.seconds

    def training(self, done: int, stage: Stage, lr: float, results: Sequence[StepResult]) -> Training:
        """The record of the steps since the last one, on all ranks together."""
        ranks, (before, started) = self._state.ranks, self._since
        loss = float(ranks.mean(torch.stack([result.loss for result in results])).mean())
        earlier, now, now_seconds = self._spent(before), self._spent(done), self._clock.seconds
        raw_tokens = self._windows.raw_tokens(done)
        seconds = max(now_seconds - started, 1e-9)
        self._since = done, now_seconds
        last = results[-1]
        load = None if last.expert_load is None else ranks.mean(last.expert_load)
        return Training(
            step=done,
            phase=stage.phase,
            bag_size=stage.bag_size,
            loss=loss if stage.bag_size == 1 else None,
            bag_loss=None if stage.bag_size == 1 else loss,
            lr=lr,
            grad_norm=float(last.grad_norm),
            router_loss=None if last.router_loss is None else float(ranks.mean(last.router_loss)),
            expert_load_max=None if load is None else float(load.max() * len(load)),
            expert_load_min=None if load is None else float(load.min() * len(load)),
            raw_tokens=raw_tokens,
            latents=now.latents,
            seconds=now_seconds,
            raw_tokens_per_second=(raw_tokens - self._windows.raw_tokens(before)) / seconds,
            latents_per_second=(now.latents - earlier.latents) / seconds,
            mfu=(now.flops - earlier.flops) / seconds / self._peak,
            memory=peak_memory(ranks.device),
        )

    def validation(self, done: int, measured: HeldOut) -> Validation:
        """The record of a validation."""
        spent = self._spent(done)
        return Validation(
            step=done,
            val_loss=measured.loss,
            val_bits_per_byte=measured.bits_per_byte,
            raw_tokens=self._windows.raw_tokens(done),
            latents=spent.latents,
            flops=spent.flops,
            seconds=self._clock.seconds,
        )

    def result(self, measured: HeldOut, compile_seconds: float) -> Result:
        """What came out of the whole run."""
        schedule, ranks = self._windows.schedule, self._state.ranks
        spent, seconds = self._spent(schedule.total_steps), self._clock.seconds
        return Result(
            val_loss=measured.loss,
            val_bits_per_byte=measured.bits_per_byte,
            ends_in_superposition=schedule.ends_in_superposition,
            steps=spent.steps,
            raw_tokens=self._windows.raw_tokens(),
            epochs=self._windows.epochs,
            latents=spent.latents,
            flops=spent.flops,
            seconds=seconds,
            compile_seconds=compile_seconds,
            mfu=spent.flops / max(seconds, 1e-9) / self._peak,
            peak_memory=max(ranks.gather(peak_memory(ranks.device))),
            ranks=ranks.world_size,
            parameters=sum(parameter.numel() for parameter in self._state.model.parameters()),
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("superpose", "torch", "transformers", "tokenizers")},
            },
        )

    def _spent(self, until: int) -> Cost:
        schedule, windows = self._windows.schedule, self._windows
        return cost(schedule, self._latents_per_step, lambda stage: self._flops_of[windows.shape(stage)[1]], until)
