"""One run from the first step to a Hugging Face directory.

store -> windows of a step -> SuperposedLM -> backward -> AdamW -> metrics, checkpoints -> model/

RUN/config.json     the resolved recipe           RUN/checkpoints/   to resume from
RUN/metrics.jsonl   training and validation       RUN/model/         the final model, as transformers saves it
RUN/store.json      the tokens it reads           RUN/result.json    what came out, when finished
"""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from superpose.core.accounting import Cost, cost
from superpose.core.model import SuperposedLM
from superpose.core.schedule import Schedule, Stage
from superpose.data.config import vocabulary_size
from superpose.data.loader import read_ahead
from superpose.data.store import TokenStore
from superpose.data.windows import WindowPlan
from superpose.errors import UserError
from superpose.files import read_json, whole_directory, write_json
from superpose.models.build import build_config, build_model, model_flops_per_latent
from superpose.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from superpose.train.config import Recipe, TrainArgs
from superpose.train.metrics import Validation, evaluate, metrics_log
from superpose.train.optim import build_optimizer, learning_rate

Listener = Callable[[dict[str, Any]], None]
"""Told of every record that goes into metrics.jsonl."""


@dataclass(frozen=True)
class Trainee:
    """What training changes."""

    model: nn.Module
    lm: SuperposedLM
    optimizer: torch.optim.AdamW


def train(
    recipe: Recipe,
    store: TokenStore,
    run: Path,
    resume: bool = False,
    listener: Listener = lambda record: None,
) -> dict[str, Any]:
    """Trains one model and returns what is in its result.json.

    Args:
        recipe: all settings.
        store: the prepared corpus.
        run: directory of the run, made if it does not exist.
        resume: go on from the newest checkpoint, exactly as if nothing had happened.
        listener: called with each record as it is written.

    Raises:
        UserError: the run exists already, or was started with other settings, or its loss is not finite.
    """
    args, schedule = recipe.train, recipe.schedule
    _claim(run, recipe, store, resume)
    if resume and (run / "result.json").exists():
        return read_json(run / "result.json")
    if args.threads:
        torch.set_num_threads(args.threads)
    trainee = build_trainee(recipe, store)
    progress = load_checkpoint(run, trainee.model, trainee.optimizer) if resume else Progress()
    plan = recipe.plan(store.train)

    def spent(until: int) -> Cost:
        return cost(schedule, recipe.latents_per_step, lambda stage: flops_of[plan.shape(stage)[1]], until)

    flops_of = {
        latents: model_flops_per_latent(trainee.model, latents)
        for latents in {plan.shape(stage)[1] for stage in schedule.stages}
    }

    with metrics_log(run / "metrics.jsonl", progress.step) as log:

        def tell(record: dict[str, Any]) -> None:
            log(record)
            listener(record)

        clock = _Clock(progress.seconds)
        validation: Validation | None = None
        if progress.step == 0:
            with clock.paused():
                trainee.lm.check()
                validation = _validate(trainee, store, args, run, 0)
                tell(_validation_record(spent(0), plan, validation, clock.seconds))
        # Losses stay on the device until they are logged: reading each would make the device wait.
        losses: list[torch.Tensor] = []
        steps = range(progress.step, args.steps)
        windows = read_ahead(partial(_window, plan, store, args.device), steps)
        for step, window in zip(steps, windows, strict=True):
            stage = schedule.stage_at(step)
            lr = learning_rate(args, step, args.steps)
            loss, grad_norm = optimizer_step(trainee, recipe, stage, window, lr)
            losses.append(loss)
            done = step + 1
            turning = done in schedule.boundaries or done == args.steps
            saving = done % args.checkpoint_every == 0 or turning
            if step == 0 and (message := _unexpected_first_loss(float(loss), store.vocab_size)):
                tell({"kind": "warning", "step": done, "message": message})
            # Logged with every checkpoint too, so that a resumed run's log is that of a run never stopped.
            if done % args.log_every == 0 or saving:
                mean_loss, norm = float(torch.stack(losses).mean()), float(grad_norm)
                losses.clear()
                _expect_finite(run, done, mean_loss, norm)
                tell(_training_record(stage, done, mean_loss, lr, norm, plan.raw_tokens(done), clock.seconds))
            if done % args.eval_every == 0 or turning:
                with clock.paused():
                    validation = _validate(trainee, store, args, run, done)
                    tell(_validation_record(spent(done), plan, validation, clock.seconds))
            if saving:
                with clock.paused():
                    save_checkpoint(run, trainee.model, trainee.optimizer, Progress(done, clock.seconds))
        with clock.paused():
            if validation is None:  # resumed after the last step
                validation = _validate(trainee, store, args, run, args.steps)
            return _finish(recipe, store, run, trainee, plan, spent(args.steps), validation, clock.seconds)


class _Clock:
    """Seconds spent training, without start-up, validation and checkpoints."""

    def __init__(self, seconds: float) -> None:
        self._spent = seconds
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._spent + (0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._spent, self._since = self.seconds, None
        yield
        self._since = time.perf_counter()


def _validate(trainee: Trainee, store: TokenStore, args: TrainArgs, run: Path, step: int) -> Validation:
    validation = evaluate(trainee.lm, store.val, args.latents, args.batch_size, args.device)
    _expect_finite(run, step, validation.loss)
    return validation


def _expect_finite(run: Path, step: int, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{run}: the loss or its gradient is no longer finite at step {step}; lower train.lr or raise "
            f"train.warmup_steps, and start again in a new directory"
        )


def _training_record(
    stage: Stage, step: int, loss: float, lr: float, grad_norm: float, raw_tokens: int, seconds: float
) -> dict[str, Any]:
    return {
        "kind": "training",
        "step": step,
        "phase": stage.phase,
        "bag_size": stage.bag_size,
        # Two different quantities, so two names: a bag's loss is not comparable with a token's.
        ("loss" if stage.bag_size == 1 else "bag_loss"): loss,
        "lr": lr,
        "grad_norm": grad_norm,
        "raw_tokens": raw_tokens,
        "seconds": seconds,
    }


def _validation_record(spent: Cost, plan: WindowPlan, validation: Validation, seconds: float) -> dict[str, Any]:
    return {
        "kind": "validation",
        "step": spent.steps,
        "val_loss": validation.loss,
        "val_bits_per_byte": validation.bits_per_byte,
        "raw_tokens": plan.raw_tokens(spent.steps),
        "latents": spent.latents,
        "flops": spent.flops,
        "seconds": seconds,
    }


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


def _claim(run: Path, recipe: Recipe, store: TokenStore, resume: bool) -> None:
    """Makes the run's directory, or checks that it is the one to go on with."""
    settings = recipe.model_dump(mode="json")
    path = run / "config.json"
    if not path.exists():
        if resume:
            raise UserError(f"{run} holds no run to resume; start it without --resume")
        if run.exists() and any(run.iterdir()):
            raise UserError(f"{run} is not empty and holds no run; give a new directory")
        write_json(run / "store.json", {"fingerprint": store.fingerprint, "path": str(store.path)})
        write_json(path, settings)
        return
    if not resume:
        raise UserError(f"{run} holds a run already; add --resume to go on with it, or give a new directory")
    if read_json(run / "store.json").get("fingerprint") != store.fingerprint:
        raise UserError(f"{run} was started on other text than the corpus holds now; give a new directory")
    before = read_json(path)
    changed = [
        f"{section}.{name}"
        for section, values in settings.items()
        for name, value in values.items()
        # The number of threads is the machine's business, not the run's.
        if before.get(section, {}).get(name) != value and name != "threads"
    ]
    if changed:
        raise UserError(
            f"{run} was started with another {', '.join(changed)}; resume with {path}, or give a new directory"
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
        message = str(error).strip().splitlines()[0]
        raise UserError(f"train.device is {recipe.train.device!r}, which PyTorch cannot use here: {message}") from None


def build_trainee(recipe: Recipe, store: TokenStore) -> Trainee:
    """Model, loss and optimizer of a run, freshly initialised from its seed."""
    torch.manual_seed(recipe.train.seed)
    config = build_config(recipe.model, store.vocab_size, recipe.train.latents, store.end_of_text)
    model = build_model(config).to(recipe.train.device).train()
    end_of_text = store.end_of_text if recipe.train.attention == "document" else None
    lm = SuperposedLM(model, recipe.superposition.weighting, recipe.superposition.variant, end_of_text)
    return Trainee(model, lm, build_optimizer(recipe.train, model))


def _window(plan: WindowPlan, store: TokenStore, device: str, step: int) -> torch.Tensor:
    """The windows of a step, on their way to the device."""
    window = plan.read(store.train.tokens, step)
    if torch.device(device).type == "cuda":
        return window.pin_memory().to(device, non_blocking=True)
    return window.to(device)


def optimizer_step(
    trainee: Trainee, recipe: Recipe, stage: Stage, window: torch.Tensor, lr: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step: mean cross-entropy over its rows, and the norm of the gradient before clipping."""
    args = recipe.train
    # In training every latent has a target, so every latent counts, in whatever parts the step is computed.
    rows = recipe.latents_per_step
    total = torch.zeros((), device=args.device)
    for part in window.chunk(args.accumulate):
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bfloat16"):
            output = trainee.lm(part, stage.bag_size, stage.mode, normalizer=rows)
        output.loss.backward()
        total += output.cross_entropy.detach()
    grad_norm = nn.utils.clip_grad_norm_(trainee.model.parameters(), args.grad_clip or math.inf)
    for group in trainee.optimizer.param_groups:
        group["lr"] = lr
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return total, grad_norm


def _unexpected_first_loss(loss: float, vocab_size: int) -> str | None:
    """A fresh model guesses: its loss is log V in both phases. Anything else means the parts are wired wrongly."""
    expected = math.log(vocab_size)
    if abs(loss - expected) <= 0.2 * expected:
        return None
    return (
        f"the first loss is {loss:.2f}, a fresh model's is log(vocabulary) = {expected:.2f}; "
        f"check the model's initialisation before trusting this run"
    )


def _finish(
    recipe: Recipe,
    store: TokenStore,
    run: Path,
    trainee: Trainee,
    plan: WindowPlan,
    spent: Cost,
    validation: Validation,
    seconds: float,
) -> dict[str, Any]:
    """Exports the model, if it is one that can generate, and writes result.json: the sign that the run is finished."""
    schedule: Schedule = recipe.schedule
    if not schedule.ends_in_superposition:
        with whole_directory(run / "model") as aside:
            transformers_logging.disable_progress_bar()
            model: Any = trainee.model
            model.save_pretrained(aside)
            shutil.copytree(store.tokenizer_path, aside, dirs_exist_ok=True)
    result = {
        "val_loss": validation.loss,
        "val_bits_per_byte": validation.bits_per_byte,
        "ends_in_superposition": schedule.ends_in_superposition,
        "steps": spent.steps,
        "raw_tokens": plan.raw_tokens(),
        "epochs": plan.epochs,
        "latents": spent.latents,
        "flops": spent.flops,
        "seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in trainee.model.parameters()),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("superpose", "torch", "transformers", "tokenizers")},
        },
    }
    write_json(run / "result.json", result)
    return result
