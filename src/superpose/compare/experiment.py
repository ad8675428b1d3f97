"""Ordinary training and TST side by side: the same recipe, seeds, data order and FLOPs.

    RUNS/NAME/comparison.json       all results           RUNS/NAME/ordinary-seed1/   a run, see `train.loop`
    RUNS/NAME/summary.md            the table             RUNS/NAME/tst-seed1/
    RUNS/NAME/loss.png              the curves            ...

Each run is a process of its own, so one that crashes takes no other with it; what is finished is kept, and the
same comparison started again goes on from there.
"""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from superpose.data.store import TokenStore
from superpose.data.workers import available_cores
from superpose.errors import UserError
from superpose.train.config import Recipe
from superpose.train.hardware import chosen_precision
from superpose.train.loop import train
from superpose.train.stopping import StoppedError

Arm = Literal["ordinary", "tst"]
ARMS: tuple[Arm, ...] = ("ordinary", "tst")


@dataclass(frozen=True)
class Run:
    """One arm at one seed."""

    arm: Arm
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run: a result, or the reason why there is none."""

    run: Run
    result: dict[str, Any] | None
    failure: str | None = None


Listener = Callable[[Run, dict[str, Any]], None]
"""Told of every record of every run."""


def plan_runs(recipe: Recipe, seeds: list[int]) -> list[Run]:
    """Both arms at each seed; arms of one seed stand together, so that they share the machine's weather.

    Raises:
        UserError: the recipe's TST arm is an ordinary run, or ends in superposition, or a seed is given twice.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {','.join(map(str, seeds))}: a seed stands there twice; give different ones")
    if not recipe.schedule.boundaries:
        raise UserError(
            "this recipe has only one phase, so there is nothing to compare; "
            "give superposition.bag_size above 1 and superposition.ratio between 0 and 1"
        )
    if recipe.schedule.ends_in_superposition:
        raise UserError(
            "this recipe ends in superposition, so its model could not be compared with an ordinary one; "
            "give ratios that add up to less than 1"
        )
    # Chosen once for all runs: what is compared must not differ in it.
    recipe = chosen_precision(recipe, torch.device(recipe.train.device))
    runs = []
    for seed in seeds:
        seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
        runs += [Run("ordinary", seed, seeded.ordinary()), Run("tst", seed, seeded)]
    return runs


def execute(
    runs: list[Run], store: TokenStore, directory: Path, jobs: int, listener: Listener = lambda run, record: None
) -> list[Outcome]:
    """Trains all runs, `jobs` at a time, each on its share of the cores."""
    context = multiprocessing.get_context("spawn")
    records: Any = context.Queue()
    threads = max(1, available_cores() // jobs)
    waiting = dict(enumerate(runs))
    running: dict[int, BaseProcess] = {}
    outcomes: dict[int, Outcome] = {}
    try:
        while len(outcomes) < len(runs):
            while waiting and len(running) < jobs:
                number = next(iter(waiting))
                run = waiting.pop(number)
                process: BaseProcess = context.Process(
                    target=_train, args=(number, run, store.path, directory / run.name, threads, records), daemon=True
                )
                process.start()
                running[number] = process
            try:
                number, record = records.get(timeout=0.5)
            except queue.Empty:
                dead = [number for number, process in running.items() if not process.is_alive()]
                if not dead:
                    continue
                # It ended without a word: killed, or out of memory.
                number, code = dead[0], running[dead[0]].exitcode
                record = {"kind": "failure", "message": f"its process ended with exit code {code}"}
            if record["kind"] in ("result", "failure"):
                running.pop(number).join()
                outcomes[number] = Outcome(runs[number], record.get("result"), record.get("message"))
            listener(runs[number], record)
    finally:
        for process in running.values():
            process.terminate()
            process.join()
    return [outcomes[number] for number in range(len(runs))]


def _train(number: int, run: Run, store: Path, directory: Path, threads: int, records: Any) -> None:
    """What the process of a run does; its last record says how it ended."""
    recipe = run.recipe
    if not recipe.train.threads:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"threads": threads})})
    try:
        result = train(
            recipe,
            TokenStore.open(store),
            directory,
            resume=(directory / "config.json").exists(),
            listener=lambda record: records.put((number, record)),
        )
        records.put((number, {"kind": "result", "result": result}))
    except UserError as error:
        records.put((number, {"kind": "failure", "message": str(error)}))
    except OSError as error:
        records.put((number, {"kind": "failure", "message": str(UserError.from_system(error))}))
    except (KeyboardInterrupt, StoppedError):
        pass  # asked to: what started it knows
    except Exception:
        records.put((number, {"kind": "failure", "message": traceback.format_exc()}))
