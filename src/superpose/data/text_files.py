"""Texts: their bytes, compressed or not, their encoding, and where a large one is cut."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Text is cut into pieces of about this many characters, so that some can be held out and their order shuffled.
_PIECE_BYTES = 16 * 1024
# Text without a line end for so long is cut between two characters.
_LONGEST_LINE = 2**20

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
    if codecs.lookup(encoding).name == "utf-8":
        for mark, marked in _MARKS:
            if start.startswith(mark):
                return marked
    return encoding


def read_text(file: Path, encoding: str, in_pieces: bool, start: int, stop: int, most: int) -> Iterator[str | None]:
    """The documents of a text, or of a range of its bytes: all of it or, if `in_pieces`, pieces; None if it is no text.

    Args:
        start: of the range, moved to the next paragraph.
        stop: of the range, moved likewise; 0 for all of the file.
        most: bytes to read at a time, where pieces are asked for.
    """
    encoding = codecs.lookup(encoding).name
    for number, block in enumerate(_blocks(file, encoding, in_pieces, start, stop, most)):
        # Only where a file starts is a byte order mark one.
        first = number == 0 and start == 0
        try:
            text = block.decode(_encoding(block[:4], encoding) if first else encoding.removesuffix("-sig"))
        except UnicodeDecodeError:
            yield None
            return
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
    for separator in (b"\n\n", b"\n"):
        found = block.rfind(separator)
        if found >= 0:
            return found + len(separator)
    return _last_character(block) if len(block) >= _LONGEST_LINE else 0


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
    for separator in (b"\n\n", b"\n"):
        found = near.find(separator)
        if found >= 0:
            return place - 1 + found + len(separator)
    return place - 1 + (_last_character(near) if len(near) == _LONGEST_LINE else len(near))


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
