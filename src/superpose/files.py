"""Files that are either whole or absent: written aside, synced to disk, then renamed into place."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from superpose.errors import UserError, first_line


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes its place when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)  # whatever is there, such as a link, is not written through
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary directory beside `path`, which takes its place when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for folder, _, names in os.walk(aside):
            for name in (*names, ""):
                sync(Path(folder, name))
        replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            path.rename(replaced)
        aside.rename(path)
        sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class BusyError(UserError):
    """Another process is at work there."""


@contextmanager
def one_at_a_time(path: Path, busy: str | None = None) -> Iterator[None]:
    """Lets only one process at a time make what is to be at `path`; the others wait, or get a `BusyError` of `busy`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        # Not through a link, which would make or empty a file elsewhere.
        with open(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as file:  # noqa: PTH123
            if not _locked(file, patient=busy is None):
                raise BusyError(str(busy))
            # Whoever held it before may have removed it, and then it locks nothing.
            if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _locked(file: IO[str], patient: bool) -> bool:
    # Who only looks whether it is locked holds it for a moment, too.
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX if patient else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
        except OSError as error:
            # Some file systems of clusters know no locks; that is no reason not to work on them.
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                return True
            raise
    return False


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a UserError if it is missing or holds none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:  # no file can have such a name
        raise UserError(f"{path} cannot be read ({first_line(error)}); check the path") from None
    return parse_json(content, str(path))


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in what was read of the file of this name; a UserError if it holds none."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{name} is not valid JSON; it was altered or cut short, so make it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} holds no JSON object; it was altered, so make it again")
    return value


def cache_directory() -> Path:
    """`$SUPERPOSE_CACHE`, or `superpose` in the user's cache directory."""
    if chosen := os.environ.get("SUPERPOSE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "superpose"


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
