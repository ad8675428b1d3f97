"""Where sources lie: a path of this machine, or an address that fsspec knows, such as s3://bucket/texts/*.jsonl.

    location -> list_files -> the location of each file -> stat_of, open_binary

A location is a string. Whatever a remote place says, or does not, ends in a sentence that names it.
"""

import errno
import glob
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from superpose.errors import UserError, first_line, missing_package

_BUFFER = 2**20
"""Bytes that are asked for at a time where less would be read."""
_STAMPS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "Digest", "blob_id", "sha256", "generation"),
    *("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created"),
)
"""Names, by file system, of what tells a file from the one that was there before; first those of its content."""


class UnreachableError(UserError, OSError):
    """A remote place does not give what was asked for; an error of the system's, and not of what is in a file."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.EIO


class MissingError(UnreachableError):
    """It answers, and does not have the file."""


def is_remote(location: str) -> bool:
    """Whether a location is an address, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def join(location: str, name: str) -> str:
    """The location of a file in a folder."""
    return f"{location.rstrip('/')}/{name}" if is_remote(location) else str(Path(location, name))


def name_of(location: str) -> str:
    """What a file is called; of an address of the web without the query."""
    name = location.rstrip("/").rpartition("/")[2]
    return name.partition("?")[0] if is_remote(location) else name


def is_file(location: str) -> bool:
    """Whether there is a file; a UserError if a remote place does not answer."""
    if not is_remote(location):
        return Path(location).is_file()
    return _information(location) is not None


def stat_of(location: str) -> tuple[int, int | str]:
    """The size of a file in bytes, and what changes when it is written again: its time in ns, or what the place has.

    Raises:
        UserError: it is not there; OSError, if it is of this machine.
    """
    if not is_remote(location):
        stat = Path(location).stat()
        return stat.st_size, stat.st_mtime_ns
    if (information := _information(location)) is None:
        raise MissingError(f"{location} is not there; check the address")
    stamps = (f"{name} {information[name]}" for name in _STAMPS if information.get(name) is not None)
    return int(information.get("size") or 0), next(stamps, "")


def open_binary(location: str) -> BinaryIO:
    """A file to read, in which can be sought: of a remote one, what is read is asked for by range.

    Raises:
        UserError: it cannot be read, now or later; OSError, if it is of this machine.
    """
    if not is_remote(location):
        return Path(location).open("rb")
    if not has_ranges(location):
        return _whole(location)
    return io.BufferedReader(_Remote(location), _BUFFER)


def has_ranges(location: str) -> bool:
    """Whether a part of a file can be read without what is before it. Some web servers only send all of one."""
    if not location.lower().startswith(("http://", "https://")):
        return True
    return (_information(location) or {}).get("partial") is True


def list_files(location: str) -> list[str]:
    """The files below a folder, without hidden ones, or that match a pattern; in the order of their names.

    A remote location can also be that of one file.

    Raises:
        UserError: a folder cannot be listed.
    """
    if is_remote(location):
        return _list_remote(location)
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

    return pa.PythonFile(open_binary(location)) if is_remote(location) else pa.memory_map(location)


def _list_remote(location: str) -> list[str]:
    system, path = filesystem(location)
    pattern = re.search(r"[*?\[]", location)
    # A pattern's folder is what is before it.
    folder = (
        location[: max(location.rfind("/", 0, pattern.start()), location.index("://") + 3)] if pattern else location
    )
    above = filesystem(folder)[1].rstrip("/")
    with explained(location):
        system.invalidate_cache()
        if not pattern and _information(location) is not None:
            return [location]
        found = system.glob(path, detail=True) if pattern else system.find(path, detail=True)
    names = [name.removeprefix(above) for name, about in found.items() if about["type"] == "file"]
    # Hidden is what is so below the folder, not above it.
    return sorted(join(folder, name.lstrip("/")) for name in names if "/." not in name)


def list_names(location: str) -> list[str]:
    """The names of the files in a remote folder, without those in its own folders; hidden ones are left out."""
    return [file.rpartition("/")[2] for file in list_files(join(location, "*"))]


def filesystem(location: str) -> tuple[Any, str]:
    """fsspec's file system of a remote location, and the path in it.

    Raises:
        UserError: fsspec does not know the place, or the package that does is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise missing_package(error) from None
    try:
        system, path = url_to_fs(location)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        how = f"pip install {package}" if package else first_line(error)
        raise UserError(f"{location} needs a package that is not installed; {how}") from None
    except Exception as error:
        raise UserError(f"{location} is no place that can be read ({first_line(error)}); check the address") from None
    return system, str(path)


@contextmanager
def explained(location: str) -> Iterator[None]:
    """Whatever is raised by a remote place, of which each has errors of its own, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = error
        if isinstance(error, FileNotFoundError):
            # Of the web, it can as well follow from there being no connection.
            cause = error.__cause__
            answered = hasattr(cause, "response") or isinstance(cause, FileNotFoundError)
            if not isinstance(cause, OSError) or answered:
                raise MissingError(f"{location} is not there; check the address") from None
            said = cause
        raise UnreachableError(
            f"{location} cannot be reached ({first_line(said)}); check the address, your rights there and the "
            f"connection, then start the same command again"
        ) from None


def _information(location: str) -> dict[str, Any] | None:
    """What a remote place tells of a file; None if it has no such file."""
    system, path = filesystem(location)
    try:
        with explained(location):
            # What was listed before may be another file by now.
            system.invalidate_cache()
            information: dict[str, Any] = system.info(path)
            return information if information["type"] == "file" else None
    except MissingError:
        return None


def _whole(location: str) -> BinaryIO:
    """All of a file, in a temporary one without a name."""
    system, path = filesystem(location)
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    with explained(location), system.open(path, "rb", block_size=0) as stream:
        while chunk := stream.read(_BUFFER):
            file.write(chunk)
    file.seek(0)
    return file


class _Remote(io.RawIOBase):
    """A remote file, whose errors are sentences."""

    def __init__(self, location: str) -> None:
        self._location = location
        system, path = filesystem(location)
        with explained(location):
            system.invalidate_cache()
            self._file = system.open(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explained(self._location):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()
