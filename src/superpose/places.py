"""Where the files of a source lie: how they are listed, weighed and opened. All are on a local disk."""

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from superpose.errors import UserError


def open_binary(location: str) -> BinaryIO:
    """A file's bytes, from which one can read anywhere; an OSError if it is not there or not to be read."""
    return Path(location).open("rb")


def stat_of(location: str) -> tuple[int, int]:
    """A file's size in bytes and a stamp that changes when it is written; an OSError if it is not there."""
    found = Path(location).stat()
    return found.st_size, found.st_mtime_ns


def is_file(location: str) -> bool:
    return Path(location).is_file()


def list_files(location: str) -> list[str]:
    """The files below a folder, without hidden ones, or that match a pattern; in the order of their names.

    Raises:
        UserError: a folder cannot be listed.
    """
    if Path(location).is_dir():
        return list(walk(location, onerror=_refuse))
    return sorted(name for name in glob.glob(location, recursive=True) if is_file(name))  # noqa: PTH207


def walk(top: str, suffix: str = "", onerror: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """The files below a local folder whose names end so, without hidden ones."""
    for folder, folders, names in os.walk(top, onerror=onerror):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(suffix) and not name.startswith(".") and path.is_file():
                yield str(path)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); make it readable or leave it out")


def map_arrow(location: str) -> Any:
    """A file as pyarrow reads it, without a copy where that is possible."""
    import pyarrow as pa

    return pa.memory_map(location)
