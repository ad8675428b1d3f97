"""Trains any number of runs: several at a time, each in a process of its own, none of them twice.

    POOL/1f0c93a5d2e4b687/     a run, named by what it computes: its settings and its text

Whoever asks for a run that is finished is given its result, and one that was cut short goes on from its last
checkpoint, whatever comparison it was begun for. An ordinary run on a stable learning rate is the beginning of every
longer one, so longer ones branch from it where its rate begins to fall, and a budget more costs its last steps alone.
"""

import hashlib
import heapq
import itertools
import json
import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superpose.data.store import TokenStore
from superpose.engine.jobs import Engine, Job, Resources, Tell
from superpose.errors import UserError
from superpose.files import BusyError, one_at_a_time
from superpose.runs.forecast import Forecast, Planned
from superpose.train.config import Recipe
from superpose.train.loop import check_device, train
from superpose.train.recipe_file import chosen_precision, with_settings
from superpose.train.run_directory import finished
from superpose.train.running import StoppedError, ended_in_order

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
    if re.fullmatch(r"[a-z][a-z0-9+]+:", runs.parts[0] if runs.parts else ""):
        raise UserError(
            f"--runs {runs} is no folder: runs lock and rename files; give one that all nodes see, such as NFS 4"
        )
    return runs / name


def settled(recipe: Recipe, engine: Engine) -> Recipe:
    """The recipe with its precision chosen, once for all runs and where they are trained: they must not differ in it.

    Raises:
        UserError: its device cannot be used there, or the engine has no room.
    """
    known: Recipe = engine.call(_settled, recipe, on_gpu=recipe.train.device == "cuda")
    return known


def _settled(recipe: Recipe) -> Recipe:
    check_device(recipe.train.device)
    return chosen_precision(recipe, torch.device(recipe.train.device))


def train_all(
    runs: Sequence[Run],
    store: TokenStore,
    pool: Path,
    jobs: int,
    display: "Display",
    engine: Engine,
    later: Sequence[Run] = (),
    listener: Listener = lambda run, record: None,
) -> list[Outcome]:
    """Trains runs and shows them at work: `execute`, `jobs` at a time or as many as the engine has room for.

    Args:
        later: what the same command trains afterwards, for the forecast of how long all takes.
        listener: told of every record after the display.
    """
    if done := sum((pool / run.key(store) / "result.json").exists() for run in runs):
        display.say(f"{done} of {len(runs)} runs are finished already; their results are in {pool}")
    together = engine.together(*_room(runs, engine, jobs))
    forecast = Forecast(_planned([*runs, *later], store, pool), together, display.say)
    display.expect({run.key(store): run.name for run in reversed([*runs, *later])}.values(), forecast.left)

    def heard(run: Run, record: dict[str, Any]) -> None:
        forecast.hear(run.name, record)
        display.record(run.name, run.steps, record)
        listener(run, record)

    try:
        with ended_in_order():
            return execute(runs, store, pool, engine, jobs, heard)
    except (KeyboardInterrupt, SystemExit):
        display.say("stopped; the same command goes on from the last checkpoints")
        raise


def _planned(runs: Sequence[Run], store: TokenStore, pool: Path) -> dict[str, Planned]:
    """Those that are not finished, each once, by name, with the steps that another of them has."""
    by_key: dict[str, Run] = {}
    for run in runs:
        by_key.setdefault(run.key(store), run)
    shared = {key: by_key[trunk].recipe.stable_steps for key, trunk in _trunks(by_key).items()}
    waiting = (key for key in by_key if not (pool / key / "result.json").exists())
    return {by_key[key].name: Planned(by_key[key].recipe, shared.get(key, 0)) for key in waiting}


def execute(
    runs: Sequence[Run],
    store: TokenStore,
    pool: Path,
    engine: Engine,
    jobs: int = 0,
    listener: Listener = lambda run, record: None,
) -> list[Outcome]:
    """Trains all runs where the engine does it, some at a time, and returns their outcomes in order.

    One that fails or dies takes no other with it. Runs that compute the same are trained once.
    """
    keys = [run.key(store) for run in runs]
    by_key = dict(zip(reversed(keys), reversed(runs), strict=True))
    outcomes = {
        key: Outcome(by_key[key], pool / key, result) for key in dict.fromkeys(keys) if (result := finished(pool / key))
    }
    for outcome in outcomes.values():
        listener(outcome.run, {"kind": "result", "result": outcome.result})
    waiting = {key: by_key[key] for key in dict.fromkeys(keys) if key not in outcomes}
    if waiting:
        queue = _Queue(waiting, _trunks(by_key), pool)
        at_a_time, resources = _room(list(waiting.values()), engine, jobs)
        engine.share(pool)
        engine.share(store.path / "manifest.json")
        imports = _imports(runs)
        running: set[str] = set()
        try:
            while queue.ready or running:
                while queue.ready and len(running) < at_a_time:
                    key = queue.next()
                    settings = by_key[key].recipe, store.path.resolve(), (pool / key).resolve(), queue.trunk(key)
                    engine.submit(key, Job.of(_train, *settings, resources, resources=resources, imports=imports))
                    running.add(key)
                event = engine.heard()
                key, run, record = event.key, by_key[event.key], event.value
                if event.kind != "record":
                    running.remove(key)
                    result = event.value if event.kind == "done" else None
                    failure = None if event.kind == "done" else _described(event.value)
                    outcomes[key] = Outcome(run, pool / key, result, failure)
                    done, failed = {"kind": "result", "result": result}, {"kind": "failure", "message": failure}
                    record = done if failure is None else failed
                queue.heard(key, event.kind != "record")
                listener(run, record)
        finally:
            engine.cancel(*running)
    return [replace(outcomes[key], run=run) for key, run in zip(keys, runs, strict=True)]


class _Queue:
    """Runs that are not begun, in the order of the plan. Some wait for the checkpoint of another that they branch from.

    What is asked of each run and each record takes the same time however many runs there are.
    """

    def __init__(self, waiting: Mapping[str, Run], trunks: Mapping[str, str], pool: Path) -> None:
        self._pool, self._trunks = pool, trunks
        self._places = {key: place for place, key in enumerate(waiting)}
        self._checkpoints = {trunk: _stable_checkpoint(pool / trunk, waiting[trunk]) for trunk in waiting}
        self._held: dict[str, list[str]] = {}
        self.ready: list[tuple[int, str]] = []
        for key, place in self._places.items():
            trunk = trunks.get(key)
            if trunk in self._places and not self._checkpoints[trunk].exists():
                self._held.setdefault(trunk, []).append(key)
            else:
                self.ready.append((place, key))

    def next(self) -> str:
        return heapq.heappop(self.ready)[1]

    def trunk(self, key: str) -> Path | None:
        """The directory of the run that this one may branch from."""
        return (self._pool / self._trunks[key]).resolve() if key in self._trunks else None

    def heard(self, key: str, ended: bool) -> None:
        """Lets go of those that wait for a run, if it has come far enough."""
        if key in self._held and (ended or self._checkpoints[key].exists()):
            for held in self._held.pop(key):
                heapq.heappush(self.ready, (self._places[held], held))


def _room(runs: Sequence[Run], engine: Engine, jobs: int) -> tuple[int, Resources]:
    """How many runs at a time, and what each has: a share of the cores, and a GPU that the engine chooses."""
    devices = {run.recipe.train.device for run in runs}
    if devices == {"cuda"}:
        return engine.room(len(runs), jobs, on_gpu=True)
    # On any other device than a CPU, which is one that was chosen, runs come one after the other.
    return engine.room(len(runs), jobs if devices == {"cpu"} else jobs or 1)


def _stable_checkpoint(directory: Path, run: Run) -> Path:
    """The checkpoint of before a run's learning rate falls."""
    return directory / "checkpoints" / f"step-{run.recipe.stable_steps:08d}"


def _imports(runs: Sequence[Run]) -> tuple[str, ...]:
    """The modules that processes of these runs need."""
    families = sorted({run.recipe.model.architecture for run in runs})
    return ("superpose.train.loop", *(f"transformers.models.{family}.modeling_{family}" for family in families))


def _described(error: Exception) -> str:
    """A sentence for the user, or all there is to know of an error nobody foresaw."""
    problem = UserError.from_system(error) if isinstance(error, OSError) else error
    return str(problem) if isinstance(problem, UserError) else "".join(traceback.format_exception(problem))


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
        for (_, shorter), (_, longer) in itertools.pairwise(sorted(family))
    }


def _train(
    tell: Tell, recipe: Recipe, store: Path, directory: Path, trunk: Path | None, resources: Resources
) -> dict[str, Any]:
    """What is done for a run in a process of its own."""
    if not recipe.train.threads:
        recipe = with_settings(recipe, "train", threads=max(1, resources.cores // resources.ranks))
    if resources.ranks > 1:
        # Ranks wait for others before they meet. Only the first would hear that the run is busy.
        with one_at_a_time(directory):
            pass
    try:
        return _trained(recipe, TokenStore.open(store), directory, trunk, tell)
    except StoppedError as error:
        # Asked to, and by what started it or somebody else: either way there is no more to say.
        raise SystemExit(error.exit_code) from None


def _trained(
    recipe: Recipe, store: TokenStore, directory: Path, trunk: Path | None, listener: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Trains a run, or waits for another comparison that is at it: its result serves both."""
    while True:
        try:
            return train(recipe, store, directory, resume=True, listener=listener, trunk=trunk)
        except BusyError:
            with one_at_a_time(directory):
                continue
