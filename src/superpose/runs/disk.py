"""What a run's directory says of it, and which runs a folder holds.

    RUNS/one/               a run                       RUNS/pool/1f0c93a5d2e4b687/    a run of comparisons
    RUNS/demo/tst-3000-seed1   a name of a run in the pool: a symbolic link

Files are read as data of others: checked, and one that was altered is named in a sentence.
"""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from superpose.data.store import TokenStore
from superpose.errors import UserError
from superpose.files import read_json
from superpose.models.load import is_model, on_this_machine
from superpose.places import is_remote
from superpose.train.checkpoint import Checkpoints
from superpose.train.config import Recipe
from superpose.train.distributed import Ranks
from superpose.train.recipe_file import load_recipe
from superpose.train.records import Result, Validation, read_metrics, read_records, read_result

ALONE = Ranks(0, 1, torch.device("cpu"))
"""This process by itself, which reads what any number of ranks wrote."""

State = Literal["finished", "running", "unfinished"]


@dataclass(frozen=True)
class RunOnDisk:
    """A run as its directory tells it; what takes reading is read when it is asked for.

    Attributes:
        names: other paths that lead to it, from comparisons.
    """

    path: Path
    recipe: Recipe
    names: tuple[Path, ...] = ()

    @cached_property
    def result(self) -> Result | None:
        """What came out, if the run is finished."""
        path = self.path / "result.json"
        return read_result(path) if path.is_file() else None

    @cached_property
    def validations(self) -> list[Validation]:
        """Of the steps that were validated, ascending."""
        path = self.path / "metrics.jsonl"
        return read_records(path, Validation) if path.is_file() else []

    @cached_property
    def checkpoints(self) -> list[int]:
        """Steps there is a checkpoint of."""
        return Checkpoints(self.path, ALONE).steps

    @property
    def step(self) -> int:
        """The last step something is known of."""
        path = self.path / "metrics.jsonl"
        steps: list[int] = [record["step"] for record in read_metrics(path)] if path.is_file() else []
        return max([0, *steps, *self.checkpoints])

    @property
    def state(self) -> State:
        if (self.path / "result.json").is_file():
            return "finished"
        return "running" if _locked(self.path.resolve()) else "unfinished"

    @property
    def store(self) -> TokenStore | None:
        """The text it read, if it is still where it was, and whole."""
        about = read_json(self.path / "store.json")
        try:
            # As a path, whatever it is: a run from elsewhere has nothing fetched.
            store = TokenStore.open(Path(str(about.get("path", ""))))
        except UserError:
            return None
        return store if store.fingerprint == about.get("fingerprint") else None

    def whole_store(self, otherwise: str) -> TokenStore:
        """The text it read; a UserError that ends with `otherwise` if it is gone, or another."""
        if (store := self.store) is None:
            where = self.path / "store.json"
            raise UserError(f"the text that {self.path} reads is no longer whole where {where} says, so {otherwise}")
        return store


def is_run(path: Path) -> bool:
    """Whether a directory is a run's: it holds a recipe and the name of a store."""
    return (path / "config.json").is_file() and (path / "store.json").is_file()


def open_run(path: Path) -> RunOnDisk:
    """The run in a directory; a UserError if it is none, or its recipe was altered."""
    if not is_run(path):
        inside = sorted(entry.parent.name for entry in path.glob("*/store.json")) if path.is_dir() else []
        more = f" and {len(inside) - 8} more" if len(inside) > 8 else ""
        names = f"it holds the runs {', '.join(inside[:8])}{more}: give one of them"
        raise UserError(f"{path} is not a run; {names if inside else 'give the directory of a run'}")
    return RunOnDisk(path, load_recipe(path / "config.json"))


def model_directory(location: str | Path) -> Path:
    """The Hugging Face directory to generate from: the place itself, or the model of the finished run there.

    Of a remote place it is a copy in the cache; runs are read on their own machine only.
    """
    place = on_this_machine(location)
    if is_remote(str(location)) or is_model(place):
        return place
    run = open_run(place)
    if run.state != "finished":
        raise UserError(
            f"{place} is not finished; go on with: superpose train {place / 'config.json'} --out {place} --resume"
        )
    schedule = run.recipe.schedule
    if schedule.ends_in_superposition:
        raise UserError(
            f"{place} ended inside superposition: its model was last trained to predict bags of "
            f"{schedule.bag_size_at(schedule.total_steps - 1)} tokens, not the next token, so what it generated "
            f"would be noise; train it with superposition.ratio below 1, so that recovery follows"
        )
    return place / "model"


def find_runs(folder: Path) -> tuple[list[RunOnDisk], list[str]]:
    """The runs in a folder and in its own folders, each once, by name; and what is wrong with those left out."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no directory; give the folder that holds runs")
    paths: dict[Path, list[Path]] = {}
    for path in sorted(_inside(folder)):
        if is_run(path):
            paths.setdefault(path.resolve(), []).append(path)
    runs, problems = [], []
    for same in paths.values():
        # A name that tells what it is comes before the pool's.
        place, *others = sorted(same, key=lambda path: (not path.is_symlink(), path))
        try:
            runs.append(RunOnDisk(place, load_recipe(place / "config.json"), tuple(others)))
        except UserError as error:
            problems.append(str(error))
    return sorted(runs, key=lambda run: run.path), problems


def names_of(run: Path, folder: Path) -> list[Path]:
    """Symbolic links in a folder, and in its own folders, that lead to a run."""
    target = run.resolve()
    return sorted(path for path in _inside(folder) if path.is_symlink() and path.resolve() == target)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory; links count nothing."""
    if path.is_symlink() or not path.is_dir():
        return 0 if path.is_symlink() else path.stat().st_size
    files = (Path(place, name) for place, _, names in os.walk(path) for name in names)
    return sum(file.stat().st_size for file in files if not file.is_symlink() and file.exists())


def _inside(folder: Path) -> Iterator[Path]:
    """Directories in a folder and in its own folders; a run's own are left out, as are hidden ones."""
    yield folder
    for path in folder.iterdir():
        if path.name.startswith(".") or not path.is_dir():
            continue
        yield path
        if not path.is_symlink() and not is_run(path):
            yield from (inner for inner in path.iterdir() if not inner.name.startswith(".") and inner.is_dir())


def _locked(run: Path) -> bool:
    """Whether a process trains this run now, see `superpose.files.one_at_a_time`."""
    try:
        with run.with_name(f".{run.name}.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file
        return False
    return False
