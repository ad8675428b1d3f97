"""Records that keep a text in one of their fields: JSON lines, Parquet and Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from superpose.data.text_files import byte_stream
from superpose.errors import UserError

# Records that are read from columns at a time.
_RECORDS = 256


def read_json_lines(file: Path, field: str, start: int, stop: int) -> Iterator[str]:
    """Texts of JSON lines, or of those that begin in a range of bytes; a `stop` of 0 means all of the file."""
    with byte_stream(file) as stream:
        place = 0
        if start:
            stream.seek(start - 1)
            place = start - 1 + len(stream.readline())
        for number, line in enumerate(stream, 1):
            if stop and place >= stop:
                return
            if line.strip():
                where = f"{file}, {f'byte {place}' if start else f'line {number}'}"
                if text := _text_of(line, where, field):
                    yield text
            place += len(line)


def _text_of(line: bytes, where: str, field: str) -> str:
    expected = f"expected JSON lines, such as {{{json.dumps(field)}: ...}} in each; convert the file to that"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); {expected}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} is no record; {expected}")
    if not isinstance(record.get(field), str):
        has = ", ".join(map(repr, list(record)[:10])) or "none"
        raise UserError(f"{where} has no text in {field!r}; its fields are {has}: name one with --field")
    return _sound(record[field])


def _sound(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def open_parquet(file: Path) -> Any:
    """A Parquet file, of which nothing but the footer is read."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)


def read_parquet(file: Path, field: str, start: int, stop: int) -> Iterator[str]:
    """Texts of a column of Parquet, of the row groups from `start` to before `stop`."""
    table = open_parquet(file)
    _expect_column(file, table.schema_arrow, field)
    groups = list(range(start, stop))
    for batch in table.iter_batches(_RECORDS, row_groups=groups, columns=[field], use_threads=False):
        yield from _texts(file, batch.column(0).to_pylist(), field)


def read_arrow(file: Path, field: str) -> Iterator[str]:
    """Texts of a column of Arrow, as file or stream."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        _expect_column(file, reader.schema, field)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in batches:
            column = batch.column(field)
            # Arrow trusts the offsets in a file, and a wrong one ends the process.
            column.validate(full=True)
            for start in range(0, len(column), _RECORDS):
                yield from _texts(file, column.slice(start, _RECORDS).to_pylist(), field)


def _expect_column(file: Path, schema: Any, field: str) -> None:
    if field not in schema.names:
        raise UserError(
            f"{file} has no column {field!r}; its columns are {', '.join(schema.names)}: name one with --field"
        )
    if schema.names.count(field) > 1:
        raise UserError(f"{file} has several columns {field!r}; give them different names")


def _texts(file: Path, values: Iterable[Any], field: str) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield _sound(value)
        elif value is not None:
            raise UserError(
                f"{file}: column {field!r} holds {type(value).__name__}, expected text; name another with --field"
            )
