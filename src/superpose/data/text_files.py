"""Texts in files: plain, compressed or not, and as a field of records in JSON lines, Parquet and Arrow."""

import codecs
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from superpose.errors import UserError

# Text is cut into pieces of about this many characters, so that some can be held out and their order shuffled.
_PIECE_BYTES = 16 * 1024
# Text without a line end for so long is cut between two characters.
_LONGEST_LINE = 2**20
# Records that are read from columns at a time.
_RECORDS = 256

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def byte_stream(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed."""
    # Even nothing takes some bytes to compress, but readers take no bytes for nothing.
    if file.suffix in (".gz", ".zst") and file.stat().st_size == 0:
        raise EOFError("it is empty")
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as stream:
            yield stream  # type: ignore[misc]
    elif file.suffix == ".zst":
        import pyarrow as pa

        with file.open("rb") as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield io.BufferedReader(stream, 2**20)
    else:
        with file.open("rb") as stream:
            yield stream


def wide_units(file: Path, encoding: str) -> bool:
    """Whether a text is in units of two or four bytes, in which a line end cannot be searched for as a byte."""
    with byte_stream(file) as stream:
        start = stream.read(4)
    return codecs.lookup(_encoding(start, encoding)).name.startswith(("utf-16", "utf-32"))


def _encoding(start: bytes, encoding: str) -> str:
    """The encoding of a text that starts so: its mark decides, unless another was asked for."""
    if codecs.lookup(encoding).name != "utf-8":
        return encoding
    return next((marked for mark, marked in _MARKS if start.startswith(mark)), encoding)


def read_text(file: Path, encoding: str, in_pieces: bool, start: int, stop: int, most: int) -> Iterator[str | None]:
    """The documents of a text, or of a range of its bytes: all of it or, if `in_pieces`, pieces; None if it is no text.

    `start` and `stop` (0 for all of the file) are moved to the next paragraph; pieces are cut from `most` bytes at a
    time.
    """
    encoding = codecs.lookup(encoding).name
    for number, block in enumerate(_blocks(file, encoding, in_pieces, start, stop, most)):
        # Only where a file starts is a byte order mark one.
        first = number == 0 and start == 0
        try:
            text = block.decode(_encoding(block[:4], encoding) if first else encoding.removesuffix("-sig"))
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            yield None
            return
        yield from _pieces(text) if in_pieces else [text]


def _blocks(file: Path, encoding: str, in_pieces: bool, start: int, stop: int, most: int) -> Iterator[bytes]:
    """The bytes of a text or of its range: all at once, or, where documents are pieces, as many as fit in memory."""
    with byte_stream(file) as stream:
        if not in_pieces or wide_units(file, encoding):
            yield stream.read()
            return
        if stop:
            start, stop = (_after_blank_line(stream, place) for place in (start, stop))
            stream.seek(start)
            yield stream.read(stop - start)
            return
        held = b""
        while chunk := stream.read(most):
            # Only now is it known that more follows: the end of a text is no place to cut it.
            if end := _last_cut(held):
                yield held[:end]
            held = held[end:] + chunk
        if held:
            yield held


def _last_cut(block: bytes) -> int:
    """Where the last paragraph starts; the last line, if there is no blank line; 0 if more is to be read first."""
    return _after(block.rfind) or (_last_character(block) if len(block) >= _LONGEST_LINE else 0)


def _after(find: Callable[[bytes], int]) -> int:
    """Where a paragraph starts that `find` leads to; a line, if there is no blank line; 0 if there is neither."""
    found = ((find(separator), separator) for separator in (b"\n\n", b"\n"))
    return next((place + len(separator) for place, separator in found if place >= 0), 0)


def _last_character(block: bytes) -> int:
    """Where the last character of UTF-8 starts; in other encodings, near the end."""
    end = len(block) - 1
    return next((place for place in range(end, end - 4, -1) if block[place] & 0xC0 != 0x80), end)


def _after_blank_line(stream: IO[bytes], place: int) -> int:
    """Where the first paragraph at or after a place starts; the first line, if no blank line is near."""
    if place == 0:
        return 0
    stream.seek(place - 1)
    near = stream.read(_LONGEST_LINE)
    end = _last_character(near) if len(near) == _LONGEST_LINE else len(near)
    return place - 1 + (_after(near.find) or end)


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text at blank lines (at line ends where there are none) into pieces of about `_PIECE_BYTES`."""
    blank = r"(?<=\n\n)(?=[^\n])|(?<=\n\r\n)(?=[^\r\n])"
    separator = blank if re.search(r"\n\s*\n", text) else r"(?<=\n)(?=[^\n])"
    piece: list[str] = []
    size = 0
    for paragraph in re.split(separator, text):
        piece.append(paragraph)
        size += len(paragraph)
        if size >= _PIECE_BYTES:
            yield "".join(piece)
            piece, size = [], 0
    if size:
        yield "".join(piece)


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
            where = f"{file}, {f'byte {place}' if start else f'line {number}'}"
            if line.strip() and (text := _text_of(line, where, field)):
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
    for batch in table.iter_batches(_RECORDS, row_groups=range(start, stop), columns=[field], use_threads=False):
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
