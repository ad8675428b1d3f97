"""Texts in files: whole, or cut into pieces at paragraphs, lines, words or characters, whichever there are."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import AnyStr, BinaryIO

from superpose.data.account import Dropped
from superpose.data.compressed import Codec, read_chunks
from superpose.data.encodings import decode, kind_of_start, line_end_of, resolve_encoding
from superpose.places import open_binary

PIECE = 16 * 1024
"""Characters of a piece, about: long texts are cut, so that some can be held out and their order shuffled."""

# Text without a line end for so long is cut between two characters.
_LONGEST_LINE = 2**20
# What is looked at of a file to know what it is.
_START = 2**16

_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def can_be_entered(file: str, encoding: str, lines: bool) -> bool:
    """Whether a file can be read from the middle: a character's start can be told there, and `lines` are in UTF-8."""
    with open_binary(file) as stream:
        encoding, _ = resolve_encoding(stream.read(4), encoding)
    return encoding == "utf-8" if lines else line_end_of(encoding) is not None


def read_text(
    file: str,
    encoding: str,
    codec: Codec = "",
    piece: int = 0,
    start: int = 0,
    stop: int = 0,
    most: int = 8 * 2**20,
    strict: bool = False,
) -> Iterator[str | Dropped]:
    """The documents of a text, or of a range of its bytes.

    Args:
        file: to read.
        encoding: of a text that starts with no byte order mark.
        codec: how it is compressed.
        piece: characters of a document, about; 0 for one document, unless the text has more than `most` bytes.
        start: of the range, moved to the next paragraph.
        stop: the next range's `start`; 0 for all of the file.
        most: bytes to read at a time.
        strict: whether a text with anything that is not in the encoding is left out as a whole.
    """
    head, encoding, mark, place, chunks = _opened(file, encoding, codec, start, stop, most)
    if mark and start == 0:
        yield Dropped("framing", mark)
    if kind_of_start(head, encoding) == "binary":
        yield from _not_text(chunks, file, start == 0)
        return
    texts = decode(chunks, encoding, file, place)
    yield from _documents(_all_or_nothing(texts, file) if strict else texts, piece)


def _opened(
    file: str, encoding: str, codec: Codec, start: int, stop: int, most: int
) -> tuple[bytes, str, int, int, Iterator[bytes | Dropped]]:
    """How a file begins, its encoding, the length of its mark, and from which place on the chunks of a range are."""
    if not stop:
        chunks = read_chunks(file, codec, most)
        first = next(chunks, b"")
        if isinstance(first, Dropped):
            return b"", resolve_encoding(b"", encoding)[0], 0, 0, chain([first], chunks)
        encoding, mark = resolve_encoding(first[:4], encoding)
        return first[:_START], encoding, mark, mark, chain([first[mark:]], chunks)
    with open_binary(file) as stream:
        head = stream.read(_START)
        encoding, mark = resolve_encoding(head[:4], encoding)
        line_end = line_end_of(encoding) or b"\n"
        place, end = (_after_blank_line(stream, at, line_end) for at in (start, stop))
        place = max(place, mark)
        stream.seek(place)
        return head, encoding, mark, place, iter([stream.read(max(0, end - place))])


def _not_text(chunks: Iterable[bytes | Dropped], file: str, first: bool) -> Iterator[Dropped]:
    size = 0
    for chunk in chunks:
        if isinstance(chunk, Dropped):
            yield chunk
        else:
            size += len(chunk)
    yield Dropped("not_text", size, count=int(first), where=file if first else "")


def _all_or_nothing(texts: Iterable[str | Dropped], file: str) -> Iterator[str | Dropped]:
    """The texts of a file, or none of it if something is dropped of it."""
    found = list(texts)
    if any(isinstance(text, Dropped) for text in found):
        size = sum(text.bytes if isinstance(text, Dropped) else len(text.encode()) for text in found)
        yield Dropped("odd_stretches", size, where=file)
    else:
        yield from found


def _documents(texts: Iterable[str | Dropped], piece: int) -> Iterator[str | Dropped]:
    """One document, or pieces of it; what is left of it before and after a gap are different ones."""
    held = ""
    for text in texts:
        if isinstance(text, Dropped):
            if text.is_gap and held:
                yield from pieces(held, piece)
                held = ""
            yield text
            continue
        # Only now is it known that more follows: the end of a text is no place to cut it.
        if end := _last_cut(held):
            piece = piece or PIECE
            yield from pieces(held[:end], piece)
        held = held[end:] + text
    if held:
        yield from pieces(held, piece)


def _last_cut(text: str) -> int:
    """Where the last paragraph starts; the last line, if there is no blank line; 0 if more is to be read first."""
    return _after(text.rfind, "\n") or (_break(text) if len(text) >= _LONGEST_LINE else 0)


def _after(find: Callable[[AnyStr], int], line_end: AnyStr) -> int:
    """Where a paragraph starts that `find` leads to; a line, if there is no blank line; 0 if there is neither."""
    found = ((find(separator), separator) for separator in (line_end + line_end, line_end))
    return next((place + len(separator) for place, separator in found if place >= 0), 0)


def _last_character(block: bytes) -> int:
    """Where the last character of UTF-8 starts; in other encodings, near the end."""
    end = len(block) - 1
    return next((place for place in range(end, end - 4, -1) if block[place] & 0xC0 != 0x80), end)


def _after_blank_line(stream: BinaryIO, place: int, line_end: bytes) -> int:
    """Where the first paragraph at or after a place starts; the first line, if no blank line is near."""
    if place == 0:
        return 0
    stream.seek(place - 1)
    near = stream.read(_LONGEST_LINE)
    end = _last_character(near) if len(near) == _LONGEST_LINE else len(near)
    return place - 1 + (_after(near.find, line_end) or end)


def pieces(text: str, size: int) -> Iterator[str]:
    """Cuts a text at blank lines (line ends where there are none) into pieces of about so many characters; 0: of all.

    A paragraph of more than two pieces is cut at line ends of any kind, else between words, else between characters.
    """
    if not size:
        yield text
        return
    blank = r"(?<=\n\n)(?=[^\n])|(?<=\n\r\n)(?=[^\r\n])"
    separator = blank if re.search(r"\n\s*\n", text) else r"(?<=\n)(?=[^\n])"
    piece: list[str] = []
    held = 0
    for paragraph in re.split(separator, text):
        *cut, last = _stretches(paragraph, size) if len(paragraph) > 2 * size else [paragraph]
        for stretch, most in [*((stretch, size // 2) for stretch in cut), (last, size)]:
            piece.append(stretch)
            held += len(stretch)
            if held >= most:
                yield "".join(piece)
                piece, held = [], 0
    if held:
        yield "".join(piece)


def _stretches(paragraph: str, size: int) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > size:
        length = _break(paragraph[start : start + size])
        yield paragraph[start : start + length]
        start += length
    yield paragraph[start:]


def _break(text: str) -> int:
    """Where to cut a text: after its last line end, else before its last word; or at its end."""
    if (line := max(map(text.rfind, _LINE_ENDS))) >= 0:
        return line + 1
    words = text.rsplit(maxsplit=1)
    return len(text) if text[-1:].isspace() or len(words) < 2 else len(text) - len(words[-1])
