"""Frees what runs take on disk: a run, its checkpoints, or a name of it, and nothing that is not one of these.

Only what stands inside the runs' folder is touched, and no symbolic link is followed.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from superpose.errors import UserError
from superpose.runs.disk import RunOnDisk, is_run, names_of, open_run, size_of
from superpose.runs.tables import spoken_size


@dataclass(frozen=True)
class Removal:
    """What is to go, the bytes that frees, and what to know before, in sentences."""

    path: Path
    kind: Literal["run", "checkpoints", "link"]
    bytes: int
    remarks: tuple[str, ...] = ()

    def spoken(self) -> str:
        what = {"run": "the run", "checkpoints": "the checkpoints", "link": "the link, not the run it leads to,"}
        return f"{spoken_size(self.bytes):>8}  {what[self.kind]} {self.path}"


def plan_removals(paths: Sequence[Path], folder: Path, checkpoints: bool = False) -> list[Removal]:
    """What removing some runs comes to; nothing is changed yet. A UserError if one is no run, or is being trained.

    Args:
        paths: of runs, or of symbolic links to them, of which the link alone goes.
        folder: that holds all runs; what is outside is refused.
        checkpoints: only what a run can be resumed from.
    """
    planned = []
    places = {_inside(path, folder): path for path in paths}
    for place, path in places.items():
        if path.is_symlink():
            planned.append(_link(place, checkpoints, place.resolve() in places))
            continue
        run = open_run(path)
        if run.state == "running":
            raise UserError(f"{path} is being trained at this moment; stop it first")
        if checkpoints:
            planned.append(_checkpoints(run, place))
            continue
        remarks = (
            [] if run.state == "finished" else [f"it is not finished: step {run.step:,} of {run.recipe.train.steps:,}"]
        )
        names = [name for name in names_of(place, folder) if _inside(name, folder) not in places]
        remarks += [f"{name} leads to it, and will lead nowhere" for name in names]
        planned.append(Removal(place, "run", size_of(place), tuple(remarks)))
    return planned


def remove(removal: Removal) -> None:
    """Removes it. A directory is put under a hidden name first, so that a kill leaves no half of a run."""
    path = removal.path
    if path.is_symlink() != (removal.kind == "link"):
        raise UserError(f"{path} was changed meanwhile; nothing of it was removed")
    if removal.kind == "link":
        path.unlink()
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.removed")
    path.rename(aside)
    shutil.rmtree(aside)


def _inside(path: Path, folder: Path) -> Path:
    """The path with all links before its last part resolved: it is to be in the folder, and not the folder itself."""
    place = path.parent.resolve() / path.name
    root = folder.resolve()
    if path.name in ("", ".", "..") or not place.is_relative_to(root) or place == root:
        raise UserError(f"{path} is not inside of {folder}; name the folder it is in with --runs")
    return place


def _link(place: Path, checkpoints: bool, run_goes: bool) -> Removal:
    if checkpoints:
        raise UserError(f"{place} is a link; name the run it leads to, {place.resolve()}, to remove its checkpoints")
    if place.exists() and not is_run(place):
        raise UserError(f"{place} is a link to something that is no run, so it is left alone")
    return Removal(place, "link", 0, ("the run it leads to goes too, since it is named as well",) if run_goes else ())


def _checkpoints(run: RunOnDisk, place: Path) -> Removal:
    kept = place / "checkpoints"
    if kept.is_symlink():
        raise UserError(f"{kept} is a link, which is not followed; remove what it leads to by hand")
    if not kept.is_dir():
        raise UserError(f"{run.path} has no checkpoints")
    remarks = () if run.state == "finished" else ("it is not finished, and cannot go on without them",)
    return Removal(kept, "checkpoints", size_of(kept), remarks)
