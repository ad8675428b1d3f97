"""Text that is streamed, kept on disk while it is prepared.

    datasets:NAME:CONFIG:SPLIT, or an iterable of records -> shards -> records -> FOLDER/00000.arrow, 00001.arrow, ...

A stream is read once: it may be slow, and nobody promises that it says the same twice, which a preparation that reads
its text twice would not notice. Beside each file stands how far the stream was read, so that a reading that was
interrupted goes on there.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from superpose.data.encodings import sound
from superpose.errors import UserError, first_line, missing_package
from superpose.files import read_json, whole_file, write_json

HUB = "datasets:"
"""What the location of a stream from `datasets` starts with."""
OBJECT = "stream:"
"""What the location of a stream that the caller gives starts with; its name follows."""

# Records that tell one of the caller's streams from another.
_FIRST = 8

Records = Iterable[Mapping[str, Any]]
Streams = Mapping[str, Records]
"""Iterables of records by name: of `datasets`, or any others that give the same records each time."""


@dataclass(frozen=True)
class Stream:
    """An opened stream.

    Attributes:
        identity: another one where the stream says something else, as far as can be told without reading it.
        has_state: whether it can be entered by `load_state_dict` with nothing lost. One of the caller's is entered by
            reading up to there: if it shuffles, its state says nothing of what waits in its buffer.
    """

    location: str
    records: Records
    identity: str
    has_state: bool

    @property
    def shards(self) -> int:
        """In how many parts it can be read at the same time."""
        return int(getattr(self.records, "num_shards", 1)) if hasattr(self.records, "shard") else 1

    def shard(self, number: int) -> "Stream":
        if self.shards == 1:
            return self
        part: Any = self.records
        return Stream(self.location, part.shard(num_shards=self.shards, index=number), self.identity, self.has_state)


def is_stream(location: str) -> bool:
    return location.startswith((HUB, OBJECT))


def open_stream(location: str, streams: Streams) -> Stream:
    """The stream that a location stands for.

    Raises:
        UserError: there is no such stream, or it can be read only once.
    """
    if location.startswith(HUB):
        return _from_hub(location)
    name = location.removeprefix(OBJECT)
    if name not in streams:
        known = ", ".join(streams) or "none"
        raise UserError(f"source {location} is none of the streams that were given ({known}); give it by that name")
    records = streams[name]
    if isinstance(records, Iterator):
        raise UserError(f"source {location} is an iterator, which can be read only once; give what it iterates over")
    first = [repr(sorted(record.items())) for record in islice(_told(records, location), _FIRST)]
    return Stream(location, records, hashlib.sha256(json.dumps(first).encode()).hexdigest(), has_state=False)


@lru_cache(maxsize=8)
def _from_hub(location: str) -> Stream:
    name, config, split, *more = [*location.removeprefix(HUB).split(":"), "", ""][: max(3, location.count(":"))]
    if not name or more:
        raise UserError(f"source {location}: expected {HUB}NAME, {HUB}NAME:CONFIG or {HUB}NAME:CONFIG:SPLIT")
    try:
        from datasets import load_dataset_builder
    except ModuleNotFoundError as error:
        raise missing_package(error) from None
    try:
        builder: Any = load_dataset_builder(name, config or None)
        records = builder.as_streaming_dataset(split=split or "train")
        # Their addresses have the revision of the hub, and their origins the times of files of this machine.
        files = (builder.config.data_files or {}).get(split or "train")
        known = [location, list(files or ()), list(getattr(files, "origin_metadata", ()))]
    except Exception as error:  # of the hub, the connection and the files, each has its own
        raise UserError(
            f"{location} cannot be streamed ({first_line(error)}); check name, configuration, split and connection"
        ) from None
    return Stream(location, records, hashlib.sha256(json.dumps(known).encode()).hexdigest(), has_state=True)


def texts_of(stream: Stream, field: str) -> Iterator[str | None]:
    """The texts of a stream's records; None where a record has none.

    Raises:
        UserError: a record has no such field, or something else in it.
    """
    for number, record in enumerate(_told(stream.records, stream.location)):
        yield _text_of(record, field, f"{stream.location}, record {number}")


def keep(job: tuple[Path, Stream | tuple[str, int], str, int]) -> None:
    """Writes the texts of a stream into a folder, as Arrow files that all processes can read.

    Args:
        job: the folder, which may hold what an interrupted reading kept; the stream, or of one from `datasets` its
            location and a shard's number; the field of the text; characters of a file.

    Raises:
        UserError: the stream breaks off, or says something else than when it was interrupted.
    """
    folder, given, field, most = job
    stream = given if isinstance(given, Stream) else _from_hub(given[0]).shard(given[1])
    if sound(field) != field:
        raise UserError(f"{stream.location}: a field named {field!r} cannot be kept; name another with --field")
    done = folder / "whole.json"
    if done.is_file():
        return
    marks = sorted(folder.glob("[0-9]*.json"))
    mark = _read_mark(marks[-1]) if marks else _Mark(records=0)
    place, number = mark.records, len(marks)
    texts: list[str | None] = []
    size, state = 0, None
    for record in _entered(stream, mark, field, folder):
        text = _text_of(record, field, f"{stream.location}, record {place}")
        if size >= most:
            # Only with the record that follows can it be seen later that the stream is entered at the right place.
            _write(folder / f"{number:05d}.arrow", texts, field)
            mark = _Mark(records=place, state=state, next=_digest(text))
            write_json(folder / f"{number:05d}.json", mark.model_dump())
            texts, size, number = [], 0, number + 1
        texts.append(text)
        size += len(text or "") + 1
        place += 1
        if size >= most and stream.has_state:
            state = stream.records.state_dict()  # type: ignore[attr-defined]
    _write(folder / f"{number:05d}.arrow", texts, field)
    write_json(done, {"records": place})


class _Mark(BaseModel, strict=True):
    """How far a stream was read."""

    records: Annotated[int, Field(ge=0)]
    state: dict[str, Any] | None = None
    """The stream's own, after so many records."""
    next: str = ""
    """Of the text that followed."""


def _read_mark(file: Path) -> _Mark:
    try:
        return _Mark.model_validate(read_json(file))
    except ValidationError:
        raise UserError(f"{file} was altered; remove {file.parents[2]} and start again") from None


def _entered(stream: Stream, mark: _Mark, field: str, folder: Path) -> Iterator[Mapping[str, Any]]:
    """The records that follow on those before a mark."""
    if not mark.records:
        yield from _told(stream.records, stream.location)
        return

    def first(records: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [record for record in islice(records, 1) if _digest(record.get(field)) == mark.next]

    records: Any = stream.records
    if mark.state is not None and stream.has_state:
        start = records.state_dict()
        entered = _told(records, stream.location)
        try:
            records.load_state_dict(mark.state)
            found = first(entered)
        except Exception:  # of whatever takes a state that is none of its own; reading up to there tells
            found = []
        if found:
            yield from chain(found, entered)
            return
        records.load_state_dict(start)
    entered = islice(_told(records, stream.location), mark.records, None)
    if not (found := first(entered)):
        raise UserError(
            f"{stream.location} says something else at record {mark.records} than when its reading was "
            f"interrupted; remove {folder.parent.parent} and start again"
        )
    yield from chain(found, entered)


def _told(records: Records, location: str) -> Iterator[Mapping[str, Any]]:
    """The records, and what breaks a stream off as a sentence."""
    try:
        for record in records:
            if not isinstance(record, Mapping):
                raise UserError(
                    f'{location} gives {type(record).__name__}, expected records; map it to {{"text": ...}}'
                )
            yield record
    except UserError:
        raise
    except Exception as error:  # of the connection, the files, or code of the caller's
        raise UserError(
            f"{location} broke off ({type(error).__name__}: {first_line(error)}); started again, it goes on there"
        ) from None


def _text_of(record: Mapping[str, Any], field: str, where: str) -> str | None:
    if field not in record:
        has = ", ".join(map(repr, list(record)[:10])) or "none"
        raise UserError(f"{where} has no {field!r}; its fields are {has}: name one with --field")
    value = record[field]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} holds {type(value).__name__} in {field!r}, expected text; name another with --field")
    return value


def _digest(text: object) -> str:
    return hashlib.sha256(repr(text).encode("utf-8", "surrogatepass")).hexdigest()


def _write(path: Path, texts: list[str | None], field: str) -> None:
    import pyarrow as pa

    table = pa.table({field: pa.array([None if text is None else sound(text) for text in texts], pa.large_string())})
    with whole_file(path) as aside, pa.OSFile(str(aside), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=4096)
