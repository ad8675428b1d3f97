"""One run from the first step to a Hugging Face directory.

store -> windows of a step -> SuperposedLM -> backward -> optimizer -> metrics, checkpoints -> model/

Every rank runs this; what is printed, logged and exported rank 0 does for all. What watches a run is in
`superpose.train.watch`.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from superpose.core.draws import random_bits
from superpose.data.config import source_names, vocabulary_size
from superpose.data.loader import read_ahead
from superpose.data.mixture import check_names
from superpose.data.store import TokenStore
from superpose.errors import UserError, first_line
from superpose.files import one_at_a_time, write_json
from superpose.models.build import build_config, build_model
from superpose.train.checkpoint import Checkpoints, Progress
from superpose.train.config import Recipe
from superpose.train.distributed import Ranks, joined_ranks
from superpose.train.forecast import PaceWatch
from superpose.train.hardware import keep_memory
from superpose.train.optim import learning_rate
from superpose.train.records import Record, Started, Validation, as_json, metrics_log, read_records
from superpose.train.run_directory import claim, export_model, finished, shared_steps
from superpose.train.running import Listener, Running, StoppedError, Watcher, stop_requests
from superpose.train.step import (
    HeldOutLoss,
    StepResult,
    TrainState,
    accumulate_gradients,
    build_state,
    optimizer_step,
    validate,
)
from superpose.train.watch import Baseline, EnergyMeter, LossWatch, Profile, SwitchSpike, Trackers


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
        resume: go on from the newest good checkpoint, exactly as if nothing had happened; start if there is none yet.
        listener: called with each record as it is written, on rank 0, and first with where the run begins.
        baseline: directory of an ordinary run; validation records then say where this run passes it.
        profile: write profiler traces of a few steps of each phase.
        trunk: directory of a shorter ordinary run of the same settings and text. Its checkpoint of before its
            learning rate fell, if it is there, saves this run those steps; what comes out is the same to the bit.

    Raises:
        UserError: the run exists already, was started with other settings, is being trained by another process, or
            its loss leaves its course.
        StoppedError: SIGTERM, SIGUSR1 or SIGINT came; a checkpoint of the last step is written.
    """
    reference = read_records(baseline / "metrics.jsonl", Validation) if baseline else []
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    with joined_ranks(recipe.parallel, recipe.train.device) as ranks, ExitStack() as stack:
        # Claim: the directory is this run's, and this process' alone.
        busy = f"{run} is being trained by another process; wait for it to end, or give a new directory"
        ranks.on_main(lambda: stack.enter_context(one_at_a_time(run.resolve(), busy)))
        begun = ranks.on_main(lambda: (run / "config.json").exists())
        recipe = ranks.on_main(lambda: claim(run, recipe, store, resume, ranks.device))
        if (result := ranks.on_main(lambda: finished(run))) is not None:
            _tell(
                ranks,
                listener,
                Started(step=recipe.train.steps, message=f"{run} is finished; nothing is left to train"),
            )
            return result
        # Model, on the device or its shard of it.
        if ranks.device.type == "cpu":
            keep_memory()
        watchers: list[Watcher] = [LossWatch(recipe.train.runaway)]
        if ranks.main:
            # Trackers are told of a record before the loss is judged by it; energy counts from here on.
            trackers, energy = Trackers(recipe.train.track), EnergyMeter(ranks.device)
            pace = PaceWatch(lambda record: listener(record.as_json()))
            watchers = [trackers, *watchers, energy, Baseline(reference), SwitchSpike(), pace]
        if profile:
            watchers.append(Profile())
        for watcher in watchers:
            stack.callback(watcher.closed)
        state = build_state(recipe, store, ranks)
        # Restore.
        milestones = {*recipe.schedule.boundaries, recipe.stable_steps}
        checkpoints = Checkpoints(run, ranks, recipe.train.keep_checkpoints, milestones)
        stack.callback(checkpoints.close)
        progress, origin, warnings = _restore(checkpoints, state, recipe, store, resume, trunk)
        log = metrics_log(run / "metrics.jsonl", progress.step, origin)
        listeners = (stack.enter_context(log), listener) if ranks.main else ()
        running = Running(run, recipe, store, state, checkpoints, progress, watchers, listeners)
        _tell(ranks, listener, _where(run, progress, recipe, begun, trunk if origin else None))
        for watcher in watchers:
            watcher.started()
        compile_seconds = _compile(running) if recipe.train.compile else 0.0
        for message in (*state.notes, *warnings):
            running.warn(progress.step, message)
        # Steps.
        measured = _steps(running)
        # Finish.
        if problem := checkpoints.wait():
            running.warn(recipe.train.steps, problem)
        return _finish(running, measured, compile_seconds)


def _restore(
    checkpoints: Checkpoints, state: TrainState, recipe: Recipe, store: TokenStore, resume: bool, trunk: Path | None
) -> tuple[Progress, Path | None, list[str]]:
    """Loads a checkpoint of this run or of the trunk, if there is one.

    Returns how far the run has come, the trunk's records if it goes on from there, and what was passed over.
    """
    warnings: list[str] = []
    progress = checkpoints.restore(state.parts, warnings.append) if resume else Progress()
    if trunk is None or progress.step > 0 or not (shared := shared_steps(trunk, recipe, store)):
        return progress, None, warnings
    progress = Checkpoints(trunk, state.ranks).restore(state.parts, warnings.append, shared)
    return progress, trunk / "metrics.jsonl", warnings


def _where(run: Path, progress: Progress, recipe: Recipe, begun: bool, trunk: Path | None) -> Started:
    """Whether this start of a run begins it or goes on with it.

    Args:
        begun: it was started before.
        trunk: what it goes on from, if that is not its own checkpoint.
    """
    message = f"{run} starts at step 0"
    if progress.step:
        message = f"{run} goes on from step {progress.step} of {recipe.train.steps}"
    elif begun:
        message = f"{run} was started before and has no checkpoint yet, so it starts at step 0 again"
    return Started(step=progress.step, message=f"{message}, with the checkpoint of {trunk}" if trunk else message)


def _tell(ranks: Ranks, listener: Listener, record: Record) -> None:
    """Tells of what is not written to metrics.jsonl."""
    if ranks.main:
        listener(record.as_json())


def _compile(run: Running) -> float:
    """Computes a step of each coming stage, at each of its bag sizes, without its update, so that all is compiled.

    Returns the seconds.
    """
    started = time.perf_counter()
    schedule = run.windows.schedule
    with run.state.kept():
        for stage in schedule.stages:
            for steps in schedule.steps_at(stage).values():
                if steps and steps[-1] >= run.progress.step:
                    accumulate_gradients(run.state, run.recipe.train, schedule.step_at(steps[0]), run.window(steps[0]))
                    for optimizer in run.state.optimizers:
                        optimizer.zero_grad(set_to_none=True)
    run.state.lm.biases.forget()
    return time.perf_counter() - started


def _steps(run: Running) -> HeldOutLoss:
    """From the checkpoint's step to the last; returns the last validation."""
    args, schedule, state, ranks = run.recipe.train, run.windows.schedule, run.state, run.state.ranks
    measured = _validate(run, 0) if run.progress.step == 0 else None
    # Results stay on the device until they are logged: reading each would make the device wait.
    results: list[StepResult] = []
    steps = range(run.progress.step, args.steps)
    # Closed with the loop: an iterator that a traceback still holds would go on reading.
    with stop_requests() as request, run.clock.running(), closing(read_ahead(run.window, steps)) as windows:
        for step, window in zip(steps, windows, strict=True):
            if args.reset_optimizer and step in schedule.boundaries:
                for optimizer in state.optimizers:
                    optimizer.state.clear()  # of moments and counts of steps
            if args.reinit_embeddings and step in schedule.boundaries:
                state.reinit_embeddings(random_bits(args.seed, "reinit", step))
            # Random numbers (dropout) are a function of the step and the rank, like all else.
            torch.manual_seed(random_bits(args.seed, "step", step, ranks.rank))
            computed = schedule.step_at(step)
            lr = learning_rate(args, step, args.steps, schedule.boundaries) * computed.lr_factor
            results.append(optimizer_step(state, args, computed, window, lr))
            done = step + 1
            for watcher in run.watchers:
                watcher.after_step(done, results[-1])
            stopping = ranks.highest(request.number) if done < args.steps else 0  # a signal's number
            turning = done in schedule.boundaries or done == args.steps
            saving = done % args.checkpoint_every == 0 or turning or done in run.checkpoints.milestones or stopping
            # Logged with every checkpoint too, so that a resumed run's log is that of a run never stopped.
            if done % args.log_every == 0 or saving:
                run.tell(run.training(done, computed, lr, results))
                results = []
            if done % run.recipe.validation_interval == 0 or turning:
                measured = _validate(run, done)
            if saving:
                with run.clock.paused():
                    if problem := run.checkpoints.save(state.tensors, Progress(done, run.clock.seconds)):
                        run.warn(done, problem)
            if stopping:
                if problem := run.checkpoints.wait():
                    raise UserError(problem)
                raise StoppedError(stopping, done)
    # Stopped after its last checkpoint, which the record of its last validation comes before.
    return measured or _held_out(run)


def _validate(run: Running, done: int) -> HeldOutLoss:
    started = time.perf_counter()
    with run.clock.paused():
        measured = _held_out(run)
        run.tell(run.validation(done, measured))
    run.validation_seconds = time.perf_counter() - started
    return measured


def _held_out(run: Running) -> HeldOutLoss:
    args = run.recipe.train
    return validate(run.state.lm, run.store.val, args.latents, args.batch_size, run.ranks, args.precision)


def _finish(run: Running, measured: HeldOutLoss, compile_seconds: float) -> dict[str, Any]:
    """Exports the model, if it can generate, and writes result.json: the sign that the run is finished."""
    result, average = run.result(measured, compile_seconds), run.state.average
    for watcher in run.watchers:
        result = watcher.before_finish(result)
    _export(run, "model")
    if average is not None:
        with average.in_place():
            averaged = _held_out(run)
            _export(run, "model-average")
        result = replace(result, average_val_loss=averaged.loss, average_val_bits_per_byte=averaged.bits_per_byte)
    known = run.ranks.on_main(lambda: as_json(result))  # which rank 0's watchers have added to
    run.ranks.on_main(lambda: write_json(run.path / "result.json", known))
    return known


def _export(run: Running, name: str) -> None:
    """Writes RUN/name, unless the model predicts bags and cannot generate text."""
    if run.recipe.schedule.ends_in_superposition:
        return
    weights, config = run.state.whole_weights(), run.state.model.config
    run.ranks.on_main(lambda: export_model(config, weights, run.store, run.path / name))


def announce(recipe: Recipe, store: TokenStore) -> str:
    """What a run will read, in a sentence to print before its first step."""
    split, windows = store.train, recipe.windows(store.train)
    by_source = windows.source_epochs
    of_each = ", ".join(f"{epochs:.2f} of {name}" for name, epochs in by_source.items())
    again = max([windows.epochs, *by_source.values()]) > 1
    passes = (
        f"{windows.epochs:.2f} epochs"
        + (f" ({of_each})" if of_each else "")
        + (", so text is read again: TST's gain is less certain there" if again else "")
    )
    unfilled = f"; {windows.unfilled:.1%} of the places in bags hold nothing" if windows.unfilled else ""
    return (
        f"{windows.raw_tokens():,} raw tokens of {len(split.tokens):,} "
        f"({split.documents:,} documents, {split.bytes / 1e6:.0f} MB) = {passes}{unfilled}"
    )


def check_recipe(recipe: Recipe) -> None:
    """A UserError, before any work, if the recipe's model cannot be built, or a stage mixes sources that its text does
    not have."""
    for number, stage in enumerate(recipe.schedule.stages, 1):
        if stage.mixture is not None:
            check_names(stage.mixture, source_names(recipe.data), f"the mixture of stage {number}")
    build_model(build_config(recipe.model, vocabulary_size(recipe.data), recipe.train.latents, end_of_text=0), "meta")


def check_device(device: str) -> None:
    """A UserError if it cannot be computed on here."""
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"train.device is {device!r}, which PyTorch cannot use here: {reason}") from None
