"""One run from the first step to a Hugging Face directory.

store -> windows of a step -> SuperposedLM -> backward -> optimizer -> metrics, checkpoints -> model/

Every rank runs this; what is printed, logged and exported rank 0 does for all.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superpose.core.accounting import Cost, cost
from superpose.core.schedule import Stage
from superpose.data.config import vocabulary_size
from superpose.data.loader import read_ahead
from superpose.data.store import TokenStore
from superpose.data.windows import random_bits
from superpose.errors import UserError, first_line
from superpose.files import write_json
from superpose.models.build import build_config, build_model, model_flops_per_latent
from superpose.train.checkpoint import Checkpoints, Progress
from superpose.train.clock import Clock
from superpose.train.config import Recipe
from superpose.train.diagnostics import Runaway, crossing, switch
from superpose.train.distributed import Ranks, joined_ranks
from superpose.train.hardware import Energy, keep_memory, matmul_peak, peak_memory
from superpose.train.optim import learning_rate
from superpose.train.profile import profiled
from superpose.train.records import metrics_log, read_metrics
from superpose.train.run_directory import claim, export_model, finished, shared_steps
from superpose.train.state import build_state
from superpose.train.step import StepResult, accumulate_gradients, optimizer_step
from superpose.train.stopping import StoppedError, stop_requests
from superpose.train.trackers import open_trackers
from superpose.train.validation import HeldOut, validate

Listener = Callable[[dict[str, Any]], None]
"""Told of every record that goes into metrics.jsonl."""


def train(
    recipe: Recipe,
    store: TokenStore,
    run: Path,
    resume: bool = False,
    listener: Listener = lambda record: None,
    baseline: Path | None = None,
    profile: bool = False,
    trunk: Path | None = None,
) -> dict[str, Any]:
    """Trains one model and returns what is in its result.json. Started by torchrun, all ranks train it together.

    Args:
        recipe: all settings.
        store: the prepared corpus.
        run: directory of the run, made if it does not exist.
        resume: go on from the newest good checkpoint, exactly as if nothing had happened.
        listener: called with each record as it is written, on rank 0.
        baseline: directory of an ordinary run; validation records then say where this run passes it.
        profile: write profiler traces of a few steps of each phase.
        trunk: directory of a shorter ordinary run of the same settings and text. Its checkpoint of before its
            learning rate fell, if it is there, saves this run those steps; what comes out is the same to the bit.

    Raises:
        UserError: the run exists already, or was started with other settings, or its loss leaves its course.
        StoppedError: SIGTERM or SIGINT came; a checkpoint of the last step is written.
    """
    reference = read_metrics(baseline / "metrics.jsonl") if baseline else []
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    with joined_ranks(recipe.parallel, recipe.train.device) as ranks:
        recipe = ranks.on_main(lambda: claim(run, recipe, store, resume, ranks.device))
        result = ranks.on_main(lambda: finished(run))
        if result is not None:
            return result
        if ranks.device.type == "cpu":
            keep_memory()
        with ExitStack() as stack:
            return _Loop(recipe, store, run, resume, listener, reference, trunk, ranks, stack).train(profile)


class _Loop:
    """A run on this rank."""

    def __init__(
        self,
        recipe: Recipe,
        store: TokenStore,
        run: Path,
        resume: bool,
        listener: Listener,
        baseline: list[dict[str, Any]],
        trunk: Path | None,
        ranks: Ranks,
        stack: ExitStack,
    ) -> None:
        self.recipe, self.store, self.run, self.ranks, self.baseline = recipe, store, run, ranks, baseline
        self.schedule = recipe.schedule
        self.plan = recipe.plan(store.train)
        self.energy = Energy(ranks.device) if ranks.main else None
        if self.energy is not None:
            stack.callback(self.energy.close)
        self.state = build_state(recipe, store, ranks)
        latents = {self.plan.shape(stage)[1] for stage in self.schedule.stages}
        self.flops_of = {length: model_flops_per_latent(self.state.model, length) for length in latents}
        self.peak = matmul_peak(ranks.device, recipe.train.precision) * ranks.world_size
        self.runaway = Runaway(recipe.train.runaway)
        self.milestones = {*self.schedule.boundaries, recipe.stable_steps}
        self.checkpoints = Checkpoints(run, ranks, recipe.train.keep_checkpoints, self.milestones)
        stack.callback(self.checkpoints.close)
        warnings: list[str] = []
        average = self.state.average
        state = self.state.model, self.state.optimizer_of, average.tensors if average else None
        self.progress = self.checkpoints.restore(*state, warnings.append) if resume else Progress()
        origin = None
        if trunk is not None and self.progress.step == 0 and (shared := shared_steps(trunk, recipe, store)):
            self.progress = Checkpoints(trunk, ranks).restore(*state, warnings.append, shared)
            origin = trunk / "metrics.jsonl"
        self.records: list[dict[str, Any]] = []
        self._listeners: list[Listener] = []
        if ranks.main:
            log = stack.enter_context(metrics_log(run / "metrics.jsonl", self.progress.step, origin))
            trackers = open_trackers(recipe.train.track, run, recipe.model_dump(mode="json"))
            stack.callback(trackers.close)
            self.records = read_metrics(run / "metrics.jsonl")
            self._listeners = [self.records.append, log, trackers, listener]
        self.compile_seconds = self._compile() if recipe.train.compile else 0.0
        self.clock = Clock(self.progress.seconds)
        for message in warnings:
            self.warn(self.progress.step, message)

    def train(self, profile: bool) -> dict[str, Any]:
        """From the checkpoint's step to the last."""
        args, schedule, ranks = self.recipe.train, self.schedule, self.ranks
        first = self.progress.step
        validation = self.validate(0) if first == 0 else None
        # Results stay on the device until they are logged: reading each would make the device wait.
        results: list[StepResult] = []
        since = first, self.clock.seconds
        steps = range(first, args.steps)
        stages = {first, *schedule.boundaries}
        tracing = profiled(self.run, stages, ranks.rank) if profile else nullcontext(lambda done: None)
        # Closed with the loop: an iterator that a traceback still holds would go on reading.
        reading = closing(read_ahead(self.window, steps))
        with stop_requests() as request, tracing as trace, reading as windows:
            for step, window in zip(steps, windows, strict=True):
                stage = schedule.stage_at(step)
                if args.reset_optimizer and step in schedule.boundaries:
                    self.state.reset_optimizers()
                if args.reinit_embeddings and step in schedule.boundaries:
                    self.state.reinit_embeddings(random_bits(args.seed, "reinit", step))
                # Random numbers (dropout) are a function of the step and the rank, like all else.
                torch.manual_seed(random_bits(args.seed, "step", step, ranks.rank))
                lr = learning_rate(args, step, args.steps, schedule.boundaries)
                results.append(optimizer_step(self.state, self.recipe, stage, window, lr))
                done = step + 1
                trace(done)
                stopping = ranks.highest(request.number) if done < args.steps else 0  # a signal's number
                turning = done in schedule.boundaries or done == args.steps
                saving = done % args.checkpoint_every == 0 or turning or done in self.milestones or stopping
                if step == 0 and self.recipe.starts_at_log_v:
                    self.expect_first_loss(results[0])
                # Logged with every checkpoint too, so that a resumed run's log is that of a run never stopped.
                if done % args.log_every == 0 or saving:
                    self.log(stage, done, lr, results, since)
                    results, since = [], (done, self.clock.seconds)
                if done % args.eval_every == 0 or turning:
                    validation = self.validate(done)
                if saving:
                    self.save(done)
                if stopping:
                    with self.clock.paused():
                        if problem := self.checkpoints.wait():
                            raise UserError(problem)
                    raise StoppedError(stopping, done)
        with self.clock.paused():
            if problem := self.checkpoints.wait():
                self.warn(args.steps, problem)
            return self.finish(validation or self.validate(args.steps))

    def window(self, step: int) -> Tensor:
        """This rank's windows of a step, on their way to the device."""
        window = self.plan.read(self.store.train.tokens, step, self.ranks.rank, self.ranks.world_size)
        if self.ranks.device.type == "cuda":
            return window.pin_memory().to(self.ranks.device, non_blocking=True)
        return window.to(self.ranks.device)

    def spent(self, until: int) -> Cost:
        return cost(
            self.schedule, self.recipe.latents_per_step, lambda stage: self.flops_of[self.plan.shape(stage)[1]], until
        )

    def tell(self, record: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener(record)

    def warn(self, step: int, message: str) -> None:
        self.tell({"kind": "warning", "step": step, "message": message})

    def log(self, stage: Stage, done: int, lr: float, results: list[StepResult], since: tuple[int, float]) -> None:
        """Writes the record of the steps since the last one, and stops the run if they left its course."""
        loss = float(self.ranks.mean(torch.stack([result.loss for result in results])).mean())
        norm = float(results[-1].grad_norm)
        self.expect_finite(done, loss, norm)
        before, now = self.spent(since[0]), self.spent(done)
        seconds = max(self.clock.seconds - since[1], 1e-9)
        raw_tokens = self.plan.raw_tokens(done)
        record = {
            "kind": "training",
            "step": done,
            "phase": stage.phase,
            "bag_size": stage.bag_size,
            # Two different quantities, so two names: a bag's loss is not comparable with a token's.
            ("loss" if stage.bag_size == 1 else "bag_loss"): loss,
            "lr": lr,
            "grad_norm": norm,
            **self.expert_record(results[-1]),
            "raw_tokens": raw_tokens,
            "latents": now.latents,
            "seconds": self.clock.seconds,
            "raw_tokens_per_second": (raw_tokens - self.plan.raw_tokens(since[0])) / seconds,
            "latents_per_second": (now.latents - before.latents) / seconds,
            "mfu": (now.flops - before.flops) / seconds / self.peak,
            "memory": peak_memory(self.ranks.device),
        }
        self.tell(record)
        if self.runaway.leaves(record):
            raise self.ranks.shared_error(
                f"{self.run}: the loss has run away: {loss:.3f} at step {done}, more than train.runaway = "
                f"{self.recipe.train.runaway} above its lowest; {self.advice(self.runaway.since)}"
            )

    def expert_record(self, result: StepResult) -> dict[str, float]:
        """Of a mixture of experts: the router's loss, and how much more the busiest expert got than an even share."""
        if result.router_loss is None or result.expert_load is None:
            return {}
        load = self.ranks.mean(result.expert_load)
        return {
            "router_loss": float(self.ranks.mean(result.router_loss)),
            "expert_load_max": float(load.max() * len(load)),
            "expert_load_min": float(load.min() * len(load)),
        }

    def validate(self, step: int) -> HeldOut:
        """Next-token loss on the held-out side, in whatever phase."""
        with self.clock.paused():
            validation = self.evaluate()
            self.expect_finite(step, validation.loss)
            spent = self.spent(step)
            record = {
                "kind": "validation",
                "step": step,
                "val_loss": validation.loss,
                "val_bits_per_byte": validation.bits_per_byte,
                "raw_tokens": self.plan.raw_tokens(step),
                "latents": spent.latents,
                "flops": spent.flops,
                "seconds": self.clock.seconds,
            }
            if self.baseline:
                switched = self.schedule.boundaries[-1] if self.schedule.boundaries else 0
                met = crossing([*self.records, record], self.baseline, switched)
                if met is not None and met.step is not None:
                    record["crossing_forecast" if met.forecast else "crossed"] = met.step
            self.tell(record)
        return validation

    def evaluate(self) -> HeldOut:
        args = self.recipe.train
        return validate(self.state.lm, self.store.val, args.latents, args.batch_size, self.ranks)

    def save(self, done: int) -> None:
        with self.clock.paused():
            if problem := self.checkpoints.save(self.state.tensors, Progress(done, self.clock.seconds)):
                self.warn(done, problem)

    def expect_finite(self, step: int, *values: float) -> None:
        if not all(map(math.isfinite, values)):
            raise self.ranks.shared_error(
                f"{self.run}: the loss or its gradient is no longer finite at step {step}; {self.advice(step)}"
            )

    def advice(self, step: int) -> str:
        """What to do about a loss that was last good at `step`."""
        self.checkpoints.wait()
        good = self.checkpoints.newest_before(step)
        where = f"the last good checkpoint is {good}; " if good else ""
        return f"{where}lower train.lr or raise train.warmup_steps, and start again in a new directory"

    def expect_first_loss(self, result: StepResult) -> None:
        """A fresh model guesses: its loss is log V in both phases. Anything else means the parts are wired wrongly."""
        loss, expected = float(self.ranks.mean(result.loss)), math.log(self.store.vocab_size)
        if abs(loss - expected) <= 0.2 * expected:
            return
        self.warn(
            1,
            f"the first loss is {loss:.2f}, a fresh model's is log(vocabulary) = {expected:.2f}; "
            f"check the model's initialisation before trusting this run",
        )

    def _compile(self) -> float:
        """Computes a step of each coming stage without its update, so that all is compiled; returns the seconds."""
        started = time.perf_counter()
        for stage in self.schedule.stages:
            if stage.stop > self.progress.step:
                accumulate_gradients(self.state, self.recipe, stage, self.window(stage.start))
                for optimizer in self.state.optimizers:
                    optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    def finish(self, validation: HeldOut) -> dict[str, Any]:
        """Exports the model, if it can generate, and writes result.json: the sign that the run is finished."""
        spent, average = self.spent(self.recipe.train.steps), self.state.average
        result = {
            "val_loss": validation.loss,
            "val_bits_per_byte": validation.bits_per_byte,
            "ends_in_superposition": self.schedule.ends_in_superposition,
            "steps": spent.steps,
            "raw_tokens": self.plan.raw_tokens(),
            "epochs": self.plan.epochs,
            "latents": spent.latents,
            "flops": spent.flops,
            "seconds": self.clock.seconds,
            "compile_seconds": self.compile_seconds,
            "mfu": spent.flops / max(self.clock.seconds, 1e-9) / self.peak,
            "peak_memory": max(self.ranks.gather(peak_memory(self.ranks.device))),
            "energy": self.ranks.on_main(self.energy.spent if self.energy else dict),
            "ranks": self.ranks.world_size,
            "parameters": sum(parameter.numel() for parameter in self.state.model.parameters()),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("superpose", "torch", "transformers", "tokenizers")},
            },
        }
        if (switched := switch(self.records)) is not None:
            result["switch"] = asdict(switched)
        self.export("model")
        if average is not None:
            with average.in_place():
                averaged = self.evaluate()
                self.export("model-average")
            result |= {"average_val_loss": averaged.loss, "average_val_bits_per_byte": averaged.bits_per_byte}
        self.ranks.on_main(lambda: write_json(self.run / "result.json", result))
        return result

    def export(self, name: str) -> None:
        """Writes RUN/name, unless the model predicts bags and cannot generate text."""
        if self.schedule.ends_in_superposition:
            return
        weights = self.state.whole_weights()
        config: Any = self.state.model.config
        self.ranks.on_main(lambda: export_model(config, weights, self.store, self.run / name))


def announce(recipe: Recipe, store: TokenStore) -> str:
    """What a run will read, in a sentence to print before its first step."""
    split = store.train
    plan = recipe.plan(split)
    passes = f"{plan.epochs:.2f} epochs" + (
        ", so text is read again: TST's gain is less certain there" if plan.epochs > 1 else ""
    )
    unfilled = f"; {plan.unfilled:.1%} of the places in bags hold nothing" if plan.unfilled else ""
    return (
        f"{plan.raw_tokens():,} raw tokens of {len(split.tokens):,} "
        f"({split.documents:,} documents, {split.bytes / 1e6:.0f} MB) = {passes}{unfilled}"
    )


def check_recipe(recipe: Recipe) -> None:
    """Finds out before any work whether the recipe's model can be built, and computed where the recipe says.

    Raises:
        UserError: it cannot.
    """
    build_model(build_config(recipe.model, vocabulary_size(recipe.data), recipe.train.latents, end_of_text=0), "meta")
    try:
        torch.zeros((), device=recipe.train.device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"train.device is {recipe.train.device!r}, which PyTorch cannot use here: {reason}") from None
