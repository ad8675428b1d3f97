"""What a user names, and the files it stands for."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from superpose.errors import UserError
from superpose.files import read_json

PYTHON_SOURCES = "python"
"""Names the default corpus: the Python sources installed on this machine."""


@dataclass(frozen=True)
class Source:
    """One thing to read."""

    location: str
    """`PYTHON_SOURCES`, a file, a folder, or a pattern such as `dump/*.jsonl.gz`."""
    field: str = "text"
    """Of JSON lines, Parquet and datasets: where a record keeps its text."""
    encoding: str = "utf-8"
    """Of text files that do not start with a byte order mark."""
    dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Of .bin files without a header; auto takes them for uint16."""


def files_of(source: Source) -> list[Path]:
    """The files of a source, in an order that depends on nothing but their names.

    Raises:
        UserError: there are none, or a folder cannot be read.
    """
    return list(_python_files()) if source.location == PYTHON_SOURCES else _files(source.location)


def _files(location: str) -> list[Path]:
    if not location:
        raise UserError("a source has no name; give a file, a folder or a pattern")
    path = Path(location)
    if path.is_file():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
            raise UserError(f"{path / 'dataset_dict.json'} names no splits; save the dataset again")
        if "train" not in splits and len(splits) > 1:
            raise UserError(f"{path} has the splits {', '.join(splits)}; give the folder of one of them")
        return _files(str(path / _plain("train" if "train" in splits else splits[0], path)))
    if (path / "state.json").is_file():
        state = read_json(path / "state.json")
        if state.get("_indices_name") or state.get("_indices_data_files"):
            raise UserError(
                f"{path} was saved with an index over its rows; call dataset.flatten_indices() and save again"
            )
        try:
            return [path / _plain(entry["filename"], path) for entry in state["_data_files"]]
        except (KeyError, TypeError):
            raise UserError(
                f"{path / 'state.json'} does not list the dataset's files; save the dataset again"
            ) from None
    if path.is_dir():
        return list(_walk(path, onerror=_refuse))
    matching = sorted(Path(name) for name in glob.glob(location, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not matching:
        raise UserError(
            f"source {location} is not there; give a file, a folder, a pattern, or '{PYTHON_SOURCES}' "
            f"for the Python sources of this machine"
        )
    return matching


def _plain(name: str, folder: Path) -> str:
    if Path(name).name != name:
        raise UserError(f"{folder} names {name!r}, which is outside it; save the dataset again")
    return name


def _python_files() -> Iterator[Path]:
    """Python sources of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    yield from (path for path in _walk(library, ".py") if "site-packages" not in path.parts[len(library.parts) :])
    for packages in sorted({paths["purelib"], paths["platlib"]}):
        yield from _walk(Path(packages), ".py")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); make it readable or leave it out")


def _walk(top: Path, suffix: str = "", onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    for folder, folders, names in os.walk(top, onerror=onerror):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(suffix) and not name.startswith(".") and path.is_file():
                yield path
