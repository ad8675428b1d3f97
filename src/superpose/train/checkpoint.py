"""Checkpoints: everything a run needs to go on exactly, in safetensors and JSON.

    RUN/checkpoints/step-00000600/model.safetensors      weights
                                  optimizer.safetensors  moments, and the random generator's state
                                  state.json             step and seconds so far

A checkpoint is written aside and renamed, so one with a name is whole. The data's position and the learning
rate are functions of the step and need no state.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from superpose.errors import UserError
from superpose.files import read_json, whole_directory, write_json

_NAME = re.compile(r"step-(\d+)")
_KEEP = 2


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Spent training, without start-up, validation and checkpoints."""


def save_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes a checkpoint of `progress.step` and removes all but the newest two."""
    folder = run / "checkpoints"
    with whole_directory(folder / f"step-{progress.step:08d}") as aside:
        save_model(model, str(aside / "model.safetensors"))
        save_file(
            {**_flat(optimizer), "rng": torch.get_rng_state()},
            aside / "optimizer.safetensors",
        )
        write_json(aside / "state.json", asdict(progress))
    for old in _checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old)


def load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Loads the newest checkpoint into model and optimizer; a run without one starts at step 0.

    Raises:
        UserError: the checkpoint cannot be read or belongs to another model.
    """
    checkpoints = _checkpoints(run / "checkpoints")
    if not checkpoints:
        return Progress()
    newest = checkpoints[-1]
    try:
        load_model(model, str(newest / "model.safetensors"))
        tensors = load_file(newest / "optimizer.safetensors")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {newest} cannot be loaded ({str(error).splitlines()[0]}); "
            f"delete it to go on from the one before"
        ) from None
    torch.set_rng_state(tensors.pop("rng"))
    _restore(optimizer, tensors)
    return Progress(**read_json(newest / "state.json"))


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State tensors of an optimizer by `parameter.name`."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
