"""Stores and models in remote places: written file by file, and read from a copy in the cache.

    folder -> files -> LOCATION/..., those that make it whole last          write_folder
    LOCATION/... -> files, compared with their checksums -> CACHE/copies/   local_copy

Remote places know no renaming. So the file without which nobody takes a folder for a store or a model is written when
all others are there, and a folder without it does not count.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from superpose.errors import UserError
from superpose.files import cache_directory, file_sha256, one_at_a_time, read_json, sync, whole_file, write_json
from superpose.places import explained, filesystem, is_file, join, list_files, open_binary, stat_of


def write_folder(folder: Path, location: str, last: Sequence[str]) -> None:
    """Writes the files of a folder to a remote location; what an interrupted writing finished stays as it is.

    Args:
        last: names of the files to write when all others are there, in this order; the last one makes it whole.

    Raises:
        UserError: the place cannot be written to, is whole already, or holds files that are none of the folder's.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in last] + list(last)
    refuse_whole(location, last[-1])
    there = {file.removeprefix(location.rstrip("/") + "/") for file in list_files(location)}
    if foreign := sorted(there - set(names)):
        raise UserError(f"{location} holds other files, such as {foreign[0]}; give a new place, or remove them")
    # By what makes it whole, which differs where anything does.
    known = json.dumps([location, *(file_sha256(folder / name) for name in last)])
    record = cache_directory() / "writing" / f"{_short(known)}.json"
    written = read_json(record) if record.is_file() else {}
    for name in names:
        target = join(location, name)
        if name in there and written.get(name) == list(stat_of(target)):
            continue
        _send(folder / name, target)
        written[name] = stat_of(target)
        if written[name][0] != (folder / name).stat().st_size:
            raise UserError(f"{target} is not as it was written; start the same command again")
        write_json(record, written)
    record.unlink()


def _send(file: Path, location: str) -> None:
    system, path = filesystem(location)
    with explained(location):
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), path)


def refuse_whole(location: str, last: str) -> None:
    """
    Raises:
        UserError: there is a folder already, made whole by the file `last`.
    """
    if is_file(join(location, last)):
        raise UserError(f"{location} is there already; give a new place, or remove it")


def local_copy(location: str, files: Mapping[str, str | None]) -> Path:
    """Some files of a remote folder in a folder of the cache, which is made unless it is there.

    A file that was changed at the location makes another copy.

    Args:
        files: relative names, and their SHA-256 where it is known.

    Raises:
        UserError: one cannot be read, or is not what its checksum says.
    """
    known = json.dumps([location, [[name, sha256, *stat_of(join(location, name))] for name, sha256 in files.items()]])
    copy = cache_directory() / "copies" / _short(known)
    if copy.is_dir():
        return copy
    with one_at_a_time(copy):
        work = copy.with_name(f".{copy.name}.partial")
        for name, sha256 in files.items():
            # One that is there was compared when it came.
            if copy.is_dir() or (work / name).is_file():
                continue
            with whole_file(work / name) as aside:
                with open_binary(join(location, name)) as stream, aside.open("wb") as file:
                    shutil.copyfileobj(stream, file, 2**23)
                if sha256 not in (None, file_sha256(aside)):
                    raise UserError(f"{join(location, name)} was altered or is not whole; write {location} again")
        if not copy.is_dir():
            work.rename(copy)
            sync(copy.parent)
    return copy


def _short(known: str) -> str:
    return hashlib.sha256(known.encode()).hexdigest()[:16]
