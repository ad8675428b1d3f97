"""Checkpoints: everything a run needs to go on exactly, in safetensors and JSON.

    RUN/checkpoints/step-00000600/shard-*.safetensors   weights and optimizer, of each rank its part
                                  state.json            step, seconds, and the checksums of all files

PyTorch's distributed checkpoint writes them, so they load into any number of ranks. A checkpoint is written beside
training from a copy of the state, under a hidden name, synced to disk and renamed: one with a name is whole. What
happens to it afterwards its checksums tell, and one that was altered is passed over for the one before. The data's
position, learning rate and random numbers are functions of the step and need no state.
"""

import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from superpose.core.experts import router_biases
from superpose.errors import UserError, first_line
from superpose.files import file_sha256, read_json, sync, write_json
from superpose.train.distributed import Ranks

_FORMAT = "superpose checkpoint 2"
_HEADS = "extra_heads"
_NAME = re.compile(r"step-(\d{8,})")

# PyTorch remarks at each checkpoint that one process is one process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Spent training, without start-up, validation and checkpoints."""


class _Saved(BaseModel, strict=True):
    """What state.json has to hold."""

    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    files: dict[str, str]


State = dict[str, Tensor]
"""Tensors by name; DTensors where the model is sharded."""


class Parts(NamedTuple):
    """What a checkpoint is loaded into.

    Attributes:
        optimizer_of: the optimizer of each parameter.
        average: of the weights.
        extra_heads: those that are trained when so many steps are done; it makes them.
    """

    model: nn.Module
    optimizer_of: Callable[[nn.Parameter], torch.optim.Optimizer]
    average: State | None = None
    extra_heads: Callable[[int], nn.Module] | None = None


def training_state(
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    average: State | None = None,
    extra_heads: nn.Module | None = None,
) -> State:
    """Weights as `model.NAME`, what optimizers know of them as `optimizer.NAME.KEY`, their average as `average.NAME`.

    Those of extra heads, which are no part of the model, are `extra_heads.NAME` and `optimizer.extra_heads.NAME.KEY`.
    The tensors are the ones in use, not copies. Tied weights stand there once, numbers as tensors [1].
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in _named(model, extra_heads)}
    state = {_of_model(name): parameter.detach() for parameter, name in names.items()}
    state |= {f"model.{name}": bias for name, bias in router_biases(model).items()}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                state[f"optimizer.{names[parameter]}.{key}"] = value.reshape(1) if value.dim() == 0 else value
    return state | {f"average.{name}": tensor for name, tensor in (average or {}).items()}


def _named(model: nn.Module, extra_heads: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
    """All that is trained, by name."""
    heads = extra_heads.named_parameters(prefix=_HEADS) if extra_heads is not None else ()
    return [*model.named_parameters(), *heads]


def _of_model(name: str) -> str:
    return name if name.startswith(f"{_HEADS}.") else f"model.{name}"


class Checkpoints:
    """The checkpoints of a run.

    Args:
        run: its directory.
        ranks: which all call each method together.
        keep: how many of the newest are kept.
        milestones: steps whose checkpoints are kept for good: the boundaries of phases, and the last step before
            the learning rate falls.
    """

    def __init__(self, run: Path, ranks: Ranks, keep: int = 2, milestones: Iterable[int] = ()) -> None:
        self.folder = run / "checkpoints"
        self._ranks = ranks
        self._keep = keep
        self.milestones = frozenset(milestones)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="superpose-checkpoint")
        self._pending: tuple[int, Future[None]] | None = None

    def save(self, state: State, progress: Progress) -> str | None:
        """Copies the state and begins to write it; the copy is all that the caller waits for.

        Returns why the checkpoint before this could not be written, if so.
        """
        problem = self.wait()
        aside = self.folder / f".step-{progress.step:08d}.tmp"

        def clear() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()

        self._ranks.on_main(clear)
        written = async_save(
            state,
            storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True),
            process_group=self._ranks.saving,
            no_dist=self._ranks.world_size == 1,
        )
        self._pending = progress.step, self._writer.submit(self._complete, written, aside, progress)
        return problem

    def wait(self) -> str | None:
        """Waits until nothing is being written; returns why the last checkpoint could not be written, if so."""
        if self._pending is None:
            return None
        step, pending = self._pending
        self._pending = None
        try:
            pending.result()
        except (CheckpointException, OSError) as error:
            shutil.rmtree(self.folder / f".step-{step:08d}.tmp", ignore_errors=True)
            kept = self.steps
            return (
                f"the checkpoint of step {step} could not be written to {self.folder} ({_reason(error)}); "
                + (f"{_name(kept[-1])} is the newest; " if kept else "there is none yet; ")
                + "make room on its disk"
            )
        return None

    def newest_before(self, step: int) -> Path | None:
        """The newest complete checkpoint of at most `step` steps."""
        known = [known for known in self.steps if known <= step]
        return self.folder / _name(known[-1]) if known else None

    @property
    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, ascending."""
        found = map(_NAME.fullmatch, (path.name for path in self.folder.glob("step-*")))
        return sorted(int(match[1]) for match in found if match)

    def weights(self, model: nn.Module, step: int, average: bool = False) -> None:
        """Fills a model with the weights of one checkpoint, or with their moving average, and changes nothing on disk.

        Raises:
            UserError: there is no such checkpoint, it was altered, it is of another model, or it holds no average.
        """
        path = self.folder / _name(step)
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise UserError(f"{self.folder} holds no checkpoint of step {step}; those it holds: {known}")
        if problem := self._problem(path):
            raise UserError(f"checkpoint {path} cannot be used: {problem}")
        kind = "average" if average else "model"
        state = {f"{kind}.{name}": parameter.detach() for name, parameter in model.named_parameters()}
        biases = {f"model.{name}": bias for name, bias in router_biases(model).items()}
        with _loading(path):
            stored = {name for name in _stored(path) if name.startswith(f"{kind}.")}
            if average and not stored:
                raise UserError(f"checkpoint {path} holds no average; the run was trained without train.average")
            self._read(path, state | biases, stored | set(biases))

    def restore(
        self, parts: Parts, tell: Callable[[str], None] = lambda message: None, step: int | None = None
    ) -> Progress:
        """Loads the newest good checkpoint; a run without one starts at step 0, one without a good one is a UserError.

        Args:
            tell: told which checkpoints were passed over, and why.
            step: load the checkpoint of this step or none, and touch nothing: the run is another's.
        """
        candidates = self._ranks.on_main(lambda: self.steps)
        if step is not None:
            candidates = [step] if step in candidates else []
        elif self._ranks.main:
            for leftover in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(leftover)
        for known in reversed(candidates):
            path = self.folder / _name(known)
            problems = [problem for problem in self._ranks.gather(self._problem(path)) if problem]
            if not problems:
                self._load(path, parts, known)
                state = read_json(path / "state.json")
                return Progress(state["step"], state["seconds"])
            tell(f"checkpoint {path} is passed over: {problems[0]}")
        if candidates and step is None:
            raise self._ranks.shared_error(
                f"{self.folder} holds no good checkpoint; restore one from a copy, or start a new run"
            )
        return Progress()

    def close(self) -> None:
        """Lets what is being written be completed."""
        self._writer.shutdown()

    def _complete(self, written: Any, aside: Path, progress: Progress) -> None:
        """Waits for the writers, then checksums and commits: on the writer's thread of each rank."""
        written.result()
        ranks = self._ranks
        mine = f"shard-{ranks.rank + 1:05d}-"
        sums = {file.name: file_sha256(file) for file in aside.iterdir() if file.name.startswith(mine)}
        everyone = ranks.gather(sums, ranks.saving)
        if not ranks.main:
            return
        files = {name: value for part in everyone for name, value in part.items()}
        state = {"format": _FORMAT, "step": progress.step, "seconds": progress.seconds, "files": files}
        write_json(aside / "state.json", {**state, "sha256": _fingerprint(state)})
        sync(aside)
        final = self.folder / _name(progress.step)
        if final.exists():  # of this step there was one already, passed over when the run was resumed
            shutil.rmtree(final)
        aside.rename(final)
        sync(self.folder)
        for old in [step for step in self.steps if step not in self.milestones][: -self._keep]:
            shutil.rmtree(self.folder / _name(old))

    def _problem(self, path: Path) -> str | None:
        """What is wrong with this rank's share of a checkpoint's files."""
        try:
            state = read_json(path / "state.json")
            if state.get("format") != _FORMAT:
                return "another version of superpose wrote it"
            saved = _Saved.model_validate(state)
        except ValidationError:
            return "its state.json was altered"
        except UserError as error:
            return str(error)
        if state.pop("sha256", None) != _fingerprint(state) or path.name != _name(saved.step):
            return "its state.json was altered"
        # A link may lead to a file that is somebody else's.
        if {file.name for file in path.glob("*.safetensors") if not file.is_symlink()} != set(saved.files):
            return "files were added to it or removed"
        shares = sorted(saved.files.items())[self._ranks.rank :: self._ranks.world_size]
        for name, expected in shares:
            try:
                if file_sha256(path / name) != expected:
                    return f"its {name} was altered or cut short"
            except OSError as error:
                return f"its {name} cannot be read ({error.strerror})"
        return None

    def _read(self, path: Path, state: State, stored: set[str]) -> None:
        """Fills tensors with what a checkpoint stores; it has to be of the same names."""
        if set(state) != stored:
            odd = min(set(state) ^ stored)
            raise UserError(f"checkpoint {path} is of another model or optimizer: {odd} is in one alone")
        load(state, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=self._ranks.world_size == 1)

    def _load(self, path: Path, parts: Parts, step: int) -> None:
        model, optimizer_of, average, extra_heads = parts
        heads = extra_heads(step) if extra_heads is not None else None
        with _loading(path):
            stored = _stored(path)
            for name, about in stored.items():
                if sum(math.prod(part.sizes) for part in about.chunks) < math.prod(about.size):
                    raise UserError(f"checkpoint {path} holds a part of {name} alone; restore it from a copy")
            state = training_state(model, [], average, heads)
            found: dict[nn.Parameter, dict[str, Tensor]] = {}
            for name, parameter in _named(model, heads):
                prefix = f"optimizer.{name}."
                found[parameter] = {
                    full.removeprefix(prefix): _empty(parameter, about, f"checkpoint {path}: {full}")
                    for full, about in stored.items()
                    if full.startswith(prefix) and "." not in full.removeprefix(prefix)
                }
                state |= {prefix + key: value for key, value in found[parameter].items()}
            self._read(path, state, set(stored))
        for parameter, values in found.items():
            if values:
                # Numbers were stored as tensors [1].
                optimizer_of(parameter).state[parameter] = {
                    key: value.squeeze(0) if value.shape == (1,) != parameter.shape else value
                    for key, value in values.items()
                }


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """Says in a sentence what is wrong with a checkpoint that cannot be loaded."""
    try:
        yield
    except UserError:
        raise
    except (CheckpointException, Exception) as error:  # PyTorch takes its own notes in a file for granted
        expected = isinstance(error, (CheckpointException, SafetensorError, OSError, ValueError, RuntimeError))
        reason = _reason(error) if expected else "what its shards say of themselves does not fit"
        raise UserError(f"checkpoint {path} cannot be loaded ({reason}); restore it from a copy") from None


def _empty(parameter: Tensor, about: Any, what: str) -> Tensor:
    """To be filled with what a checkpoint knows of a parameter: sharded as it is, or a number."""
    if about.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=about.properties.dtype)
    if about.size != (1,):  # before memory is taken for it
        raise UserError(f"{what} is {[*about.size]}, its parameter {[*parameter.shape]}: it is of another model")
    return torch.zeros(about.size, dtype=about.properties.dtype, device=parameter.device)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _stored(path: Path) -> dict[str, Any]:
    """What a checkpoint says of each tensor in it."""
    return dict(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)


def _fingerprint(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _reason(error: BaseException) -> str:
    """What went wrong first, out of what PyTorch gathers from all ranks."""
    failures = getattr(error, "failures", None)
    if failures:
        return _reason(next(iter(failures.values()))[0])
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
