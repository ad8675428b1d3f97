"""Texts that are a field of records: JSON lines, Parquet and Arrow."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeGuard

from superpose.data.account import Dropped
from superpose.data.compressed import Codec, read_chunks
from superpose.data.encodings import decode, resolve_encoding, sound
from superpose.errors import UserError, first_line
from superpose.places import map_arrow, open_binary, stat_of

# Records that are read from columns at a time.
_RECORDS = 256
# A line that is longer is no record.
_LONGEST_LINE = 2**28
# Lines at the beginning of a file of which one has to be a record, or it is something else.
_FIRST_LINES = 10

READING_ERRORS = (OSError, ValueError, NotImplementedError)
"""What is raised for a file that cannot be read, or has something else in it: Arrow's own errors are these."""


class _BrokenError(ValueError):
    """A line is no record with text; the message says why."""


def read_json_lines(
    file: str, field: str, encoding: str, codec: Codec = "", start: int = 0, stop: int = 0, most: int = 2**20
) -> Iterator[str | Dropped]:
    """Texts of JSON lines, or of those that begin in a range of bytes; a `stop` of 0 means all of the file.

    Raises:
        UserError: none of the first lines of the file is a record with the field.
    """
    problem = ""
    begun = bool(start)
    seen = 0
    lines = _range_lines(file, start, stop) if stop else _lines(file, encoding, codec, most)
    for place, line in lines:
        if isinstance(line, Dropped):
            yield line
            continue
        if not line.strip():
            continue
        seen += 1
        try:
            text = _text_of(line, field, begun)
        except _BrokenError as error:
            where = f"{file}, {f'byte {place:,}' if start else f'line {place:,}'} {error}"
            problem = problem or where
            if not begun and seen == _FIRST_LINES:
                break
            yield Dropped("records", len(line), where=where)
            continue
        begun = True
        yield text if text else Dropped("no_text", 0)
    if problem and not begun:
        raise UserError(problem)


def _range_lines(file: str, start: int, stop: int) -> Iterator[tuple[int, bytes | Dropped]]:
    """Where each line that begins in a range of bytes begins (from the file's start on, its number), and the line."""
    with open_binary(file) as stream:
        place = 0
        if start:
            stream.seek(start - 1)
            place = start - 1
            while skipped := stream.readline(_LONGEST_LINE):
                place += len(skipped)
                if skipped.endswith(b"\n"):
                    break
        number = 0
        while place < stop and (line := stream.readline(_LONGEST_LINE)):
            number += 1
            yield place if start else number, line
            place += len(line)


def _lines(file: str, encoding: str, codec: Codec, most: int) -> Iterator[tuple[int, bytes | Dropped]]:
    """Number and content of each line, in UTF-8; what is left of one before and after damage is a line."""
    chunks = read_chunks(file, codec, most)
    first = next(chunks, b"")
    encoding, mark = resolve_encoding(first[:4] if isinstance(first, bytes) else b"", encoding)
    if mark and isinstance(first, bytes):
        first = first[mark:]
    chunks = chain([first], chunks)
    if encoding != "utf-8":
        texts = decode(chunks, encoding, file)
        chunks = (text.encode() if isinstance(text, str) else text for text in texts)
    number = 1
    held: list[bytes] = []
    for chunk in chunks:
        if isinstance(chunk, Dropped):
            yield number, b"".join(held)
            held.clear()
            yield number, chunk
            continue
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield number, b"".join([*held, line])
            held.clear()
            number += 1
        held.append(rest)
        if sum(map(len, held)) > _LONGEST_LINE:
            yield number, b"".join(held)
            held.clear()
    yield number, b"".join(held)


def _text_of(line: bytes, field: str, begun: bool) -> str | None:
    """The text of a line; None of a record that has none."""
    expected = f"expected JSON lines, such as {{{json.dumps(field)}: ...}} in each; convert the file to that"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BrokenError(f"is not JSON ({error}); {expected}") from None
    if not isinstance(record, dict):
        raise _BrokenError(f"is no record; {expected}")
    text = record.get(field)
    if isinstance(text, str):
        return sound(text)
    # Some write a field that has no value as null, and some leave it out.
    if text is None and (field in record or begun):
        return None
    has = ", ".join(map(repr, list(record)[:10])) or "none"
    raise _BrokenError(f"has no text in {field!r}; its fields are {has}: name one with --field")


def is_record(line: bytes, field: str) -> bool:
    """Whether a line of JSON has a text."""
    try:
        return bool(_text_of(line, field, begun=False))
    except _BrokenError:
        return False


@contextmanager
def open_parquet(file: str) -> Iterator[Any]:
    """A Parquet file, of which nothing but the footer is read."""
    import pyarrow.parquet as pq

    with open_binary(file) as stream:
        yield pq.ParquetFile(stream, page_checksum_verification=True)


def read_parquet(file: str, field: str, start: int, stop: int) -> Iterator[str | Dropped]:
    """Texts of a column of Parquet, of the row groups from `start` to before `stop`.

    A damaged one costs what is left of it.
    """
    with open_parquet(file) as table:
        _expect_column(file, table.schema_arrow, field)
        for group in range(start, stop):
            yield from _texts_of_group(file, table, field, group)


def _texts_of_group(file: str, table: Any, field: str, group: int) -> Iterator[str | Dropped]:
    read = 0
    try:
        for batch in table.iter_batches(_RECORDS, row_groups=[group], columns=[field], use_threads=False):
            for text in _texts(file, batch.column(0), field):
                read += len(text.encode()) if isinstance(text, str) else text.bytes
                yield text
    except READING_ERRORS as error:
        if isinstance(error, UserError) or is_systems(error):
            raise
        where = f"{file}, row group {group} ({first_line(error)})"
        yield Dropped("columns", max(0, _size_of(table, group, field) - read), where=where)


def _size_of(table: Any, group: int, field: str) -> int:
    """Bytes of a column in a row group, by the file's own word."""
    about = table.metadata.row_group(group)
    columns = map(about.column, range(about.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)


def read_arrow(file: str, field: str) -> Iterator[str | Dropped]:
    """Texts of a column of Arrow, as file or stream.

    A damaged batch costs itself, and in a stream what follows: only files say where batches are.
    """
    import pyarrow as pa

    size, _ = stat_of(file)
    with map_arrow(file) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        _expect_column(file, reader.schema, field)
        if is_file and reader.num_record_batches > size:
            raise ValueError(f"it claims {reader.num_record_batches} batches in {size} bytes; it is damaged")
        number = 0
        while not is_file or number < reader.num_record_batches:
            place = stream.tell()
            try:
                batch = reader.get_batch(number) if is_file else reader.read_next_batch()
                column = batch.column(field)
                # Arrow trusts the offsets in a file, and a wrong one ends the process.
                column.validate(full=True)
            except StopIteration:
                return
            except READING_ERRORS as error:
                if is_systems(error):
                    raise
                where = f"{file}, batch {number} ({first_line(error)})"
                if not is_file:
                    yield Dropped("columns", size - place, where=where)
                    return
                yield Dropped("columns", size // reader.num_record_batches, where=where)
            else:
                for start in range(0, len(column), _RECORDS):
                    yield from _texts(file, column.slice(start, _RECORDS), field)
            number += 1


def is_systems(error: Exception) -> TypeGuard[OSError]:
    """Whether an error is the system's, such as a disk that is gone, and not one about what is in a file."""
    return isinstance(error, OSError) and error.errno is not None


def _expect_column(file: str, schema: Any, field: str) -> None:
    if field not in schema.names:
        raise UserError(
            f"{file} has no column {field!r}; its columns are {', '.join(schema.names)}: name one with --field"
        )
    if schema.names.count(field) > 1:
        raise UserError(f"{file} has several columns {field!r}; give them different names")


def _texts(file: str, column: Any, field: str) -> Iterator[str | Dropped]:
    for value in _values(column):
        if isinstance(value, str):
            yield sound(value) if value else Dropped("no_text", 0)
        elif isinstance(value, Dropped):
            yield value
        elif value is None:
            yield Dropped("no_text", 0)
        else:
            raise UserError(
                f"{file}: column {field!r} holds {type(value).__name__}, expected text; name another with --field"
            )


def _values(column: Any) -> Iterable[Any]:
    """What a column holds; of texts that are no UTF-8 that they are dropped."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return map(_value, column)


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Dropped("records", len(scalar.as_buffer()), where="a text in a column that is not in UTF-8")
