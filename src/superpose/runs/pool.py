"""Trains any number of runs: several at a time, each in a process of its own, none of them twice.

    POOL/1f0c93a5d2e4b687/     a run, named by what it computes: its settings and its text

Whoever asks for a run that is finished is given its result, and one that was cut short goes on from its last
checkpoint, whatever comparison it was begun for. An ordinary run on a stable learning rate is the beginning of every
longer one, so longer ones branch from it where its rate begins to fall, and a budget more costs its last steps alone.
"""

import hashlib
import json
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpose.data.store import TokenStore
from superpose.data.workers import available_cores, script_left_out
from superpose.errors import UserError
from superpose.files import BusyError, one_at_a_time
from superpose.train.config import Recipe, with_settings
from superpose.train.loop import train
from superpose.train.run_directory import finished
from superpose.train.running import StoppedError

if TYPE_CHECKING:  # the processes of runs show nothing
    from superpose.results.progress import Display

POOL = "pool"
"""Folder of the runs beside the folders of the comparisons they are part of."""
_ARITHMETIC = 1
"""To be raised when training the same recipe on the same text comes to mean something else."""


@dataclass(frozen=True)
class Run:
    """One training of a recipe, as a part of something larger.

    Attributes:
        arm: what it stands for, such as "ordinary" or "tst"; runs of an arm differ in seed and steps alone.
        recipe: all of its settings, with the precision chosen.
        mark: what else its name says, where arm, steps and seed do not tell it from another.
    """

    arm: str
    recipe: Recipe
    mark: str = ""

    @property
    def seed(self) -> int:
        return self.recipe.train.seed

    @property
    def steps(self) -> int:
        return self.recipe.train.steps

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.arm, str(self.steps), self.mark, f"seed{self.seed}")))

    def key(self, store: TokenStore) -> str:
        """The same for runs that compute the same, 16 hexadecimal digits."""
        identity = {"arithmetic": _ARITHMETIC, "text": store.fingerprint, "settings": self.recipe.computing}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What became of a run: a result, or the reason why there is none."""

    run: Run
    directory: Path
    result: dict[str, Any] | None
    failure: str | None = None


Listener = Callable[[Run, dict[str, Any]], None]
"""Told of every record of every run."""


def named_directory(runs: Path, name: str) -> Path:
    """The folder of a comparison, a search or a reproduction: RUNS/NAME, which is not the folder all runs share."""
    if name == POOL:
        raise UserError(f"--name {name} is where runs are kept; choose another name")
    return runs / name


def train_all(runs: Sequence[Run], store: TokenStore, pool: Path, jobs: int, display: "Display") -> list[Outcome]:
    """Trains runs and shows them at work: `execute`, on all cores or as many at a time as `jobs` says."""
    if done := sum((pool / run.key(store) / "result.json").exists() for run in runs):
        display.say(f"{done} of {len(runs)} runs are finished already; their results are in {pool}")
    on_cpu = all(run.recipe.train.device == "cpu" for run in runs)
    at_a_time = min(jobs or (available_cores() if on_cpu else 1), max(1, len(runs)))
    try:
        return execute(runs, store, pool, at_a_time, lambda run, record: display.record(run.name, run.steps, record))
    except KeyboardInterrupt:
        display.say("stopped; the same command goes on from the last checkpoints")
        raise


def execute(
    runs: Sequence[Run], store: TokenStore, pool: Path, jobs: int, listener: Listener = lambda run, record: None
) -> list[Outcome]:
    """Trains all runs, `jobs` at a time, each on its share of the cores, and returns their outcomes in order.

    One that fails or dies takes no other with it. Runs that compute the same are trained once.
    """
    keys = [run.key(store) for run in runs]
    by_key = {key: runs[keys.index(key)] for key in keys}
    outcomes = {
        key: Outcome(run, pool / key, result) for key, run in by_key.items() if (result := finished(pool / key))
    }
    waiting = [key for key in by_key if key not in outcomes]
    trunks = _trunks(by_key)
    context = _context(runs)
    records: Any = context.Queue()
    threads = max(1, available_cores() // jobs)
    running: dict[str, BaseProcess] = {}
    for outcome in outcomes.values():
        listener(outcome.run, {"kind": "result", "result": outcome.result})

    def is_ready(key: str) -> bool:
        """Whether a run waits for no other's checkpoint."""
        trunk = trunks.get(key)
        if trunk not in waiting and trunk not in running:
            return True
        return (pool / trunk / "checkpoints" / f"step-{by_key[trunk].recipe.stable_steps:08d}").exists()

    try:
        while waiting or running:
            while len(running) < jobs and (key := next(filter(is_ready, waiting), None)) is not None:
                waiting.remove(key)
                trunk = pool / trunks[key] if key in trunks else None
                process: BaseProcess = context.Process(  # type: ignore[attr-defined]
                    target=_train,
                    args=(key, by_key[key].recipe, store.path, pool / key, trunk, threads, records),
                    daemon=True,
                )
                with script_left_out():
                    process.start()
                running[key] = process
            try:
                key, record = records.get(timeout=0.5)
            except queue.Empty:
                dead = [key for key, process in running.items() if not process.is_alive()]
                if not dead:
                    continue
                # It ended without a word: killed, or out of memory.
                key, code = dead[0], running[dead[0]].exitcode
                record = {"kind": "failure", "message": f"its process ended with exit code {code}"}
            if key not in running:
                continue  # the last words of one that was found dead
            if record["kind"] in ("result", "failure"):
                running.pop(key).join()
                outcomes[key] = Outcome(by_key[key], pool / key, record.get("result"), record.get("message"))
            listener(by_key[key], record)
    finally:
        for process in running.values():
            process.terminate()
            process.join()
    return [replace(outcomes[key], run=run) for key, run in zip(keys, runs, strict=True)]


def _context(runs: Sequence[Run]) -> BaseContext:
    """How the processes of runs start: from one that has imported what they need, where the system can do that."""
    ways = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    families = sorted({run.recipe.model.architecture for run in runs})
    # What cannot be imported is passed over.
    models = [f"transformers.models.{family}.modeling_{family}" for family in families]
    context.set_forkserver_preload(["superpose.train.loop", *models])
    return context


def link(outcomes: Sequence[Outcome], directory: Path) -> None:
    """Gives runs of a pool the names people look for: DIRECTORY/NAME points to each."""
    directory.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        if not outcome.directory.exists():
            continue
        name = directory / outcome.run.name
        if name.is_symlink():
            name.unlink()
        elif name.exists():
            raise UserError(f"{name} is in the way of a run's name; remove it, or give another --name")
        name.symlink_to(os.path.relpath(outcome.directory, directory), target_is_directory=True)


def _trunks(runs: dict[str, Run]) -> dict[str, str]:
    """Of each run the one it may branch from: the longest that is shorter and of the same settings otherwise."""
    families: dict[str, list[tuple[int, str]]] = {}
    for key, run in runs.items():
        if run.recipe.stable_steps:
            settings = {name: value for name, value in run.recipe.computing.items() if name != "train.steps"}
            families.setdefault(json.dumps(settings, sort_keys=True), []).append((run.steps, key))
    return {
        longer: shorter
        for family in families.values()
        for (_, shorter), (_, longer) in zip(sorted(family), sorted(family)[1:], strict=False)
    }


def _train(
    key: str, recipe: Recipe, store: Path, directory: Path, trunk: Path | None, threads: int, records: Any
) -> None:
    """What the process of a run does; its last record says how it ended."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    if not recipe.train.threads:
        recipe = with_settings(recipe, "train", threads=threads)
    try:
        result = _trained(recipe, TokenStore.open(store), directory, trunk, lambda record: records.put((key, record)))
        records.put((key, {"kind": "result", "result": result}))
    except (KeyboardInterrupt, StoppedError):
        pass  # asked to: what started it knows
    except Exception as error:
        problem = UserError.from_system(error) if isinstance(error, OSError) else error
        message = str(problem) if isinstance(problem, UserError) else traceback.format_exc()
        records.put((key, {"kind": "failure", "message": message}))


def _trained(
    recipe: Recipe, store: TokenStore, directory: Path, trunk: Path | None, listener: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Trains a run, or waits for another comparison that is at it: its result serves both."""
    while True:
        try:
            resume = (directory / "config.json").exists()
            return train(recipe, store, directory, resume, listener, trunk=trunk)
        except BusyError:
            with one_at_a_time(directory):
                continue


def _stop_with_parent() -> None:
    """Asks the run to save and stop when the process that started it is gone, whatever took it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
