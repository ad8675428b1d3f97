"""From bytes to text in any of Python's encodings; what is not in the encoding is left out and counted.

A stretch of `_STRETCH` bytes of which more than one byte in a hundred is not in the encoding, or zero, is no text and
dropped; of others only those bytes are.
"""

import codecs
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal

from superpose.data.account import Dropped
from superpose.errors import UserError

_STRETCH = 2**16
_MOST_ODD = 0.01
# Bytes a decoder may want to see together.
_LONGEST_UNIT = 2**26

# Not of files: of names in networks, of Windows' settings, and what always fails.
_NO_ENCODINGS = ("idna", "punycode", "mbcs", "oem", "undefined")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def check_encoding(encoding: str) -> None:
    """A UserError if Python has no such encoding of text."""
    try:
        # Looking it up would accept base64 and its like, which decode to no text.
        b" ".decode(encoding, "replace")
        known = codecs.lookup(encoding).name not in _NO_ENCODINGS
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError):
        known = False
    if not known:
        raise UserError(f"there is no encoding {encoding!r}; name one of Python's, such as utf-8")


def resolve_encoding(start: bytes, encoding: str) -> tuple[str, int]:
    """The encoding of a file that starts so, and the length of its byte order mark.

    The mark decides, unless another encoding was asked for.
    """
    name = codecs.lookup(encoding).name
    family = name.removesuffix("-sig")
    marked = next(((mark, of) for mark, of in _MARKS if start.startswith(mark)), None)
    if family in ("utf-8", "utf-16", "utf-32") and marked and (name == "utf-8" or marked[1].startswith(family)):
        return marked[1], len(marked[0])
    return {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(family, family), 0


@lru_cache
def line_end_of(encoding: str) -> bytes | None:
    """The line end in an encoding whose text can be entered at any character; None if it cannot, or not everywhere."""
    if encoding == "utf-8":
        return b"\n"
    decoder = codecs.getincrementaldecoder(encoding)()
    begun = decoder.getstate()
    for byte in range(256):
        try:
            if len(decoder.decode(bytes([byte]))) != 1 or decoder.getstate() != begun:
                return None
        except UnicodeError:
            decoder.reset()
    return "\n".encode(encoding)


def kind_of_start(start: bytes, encoding: str) -> Literal["text", "binary"]:
    """Whether a file that starts so is text: many zero bytes, or some beside others that are odd, are a program's."""
    if b"\0" not in start:
        return "text"
    decoder = codecs.getincrementaldecoder(encoding)()
    _, odd, zeros, _ = _salvaged(decoder, start, final=False, most=len(start))
    many = _MOST_ODD * len(start)
    return "binary" if zeros and (odd + zeros > many) else "text"


def decode(chunks: Iterable[bytes | Dropped], encoding: str, where: str, place: int = 0) -> Iterator[str | Dropped]:
    """The text of consecutive chunks of bytes, from a place of a file on; each cut at a character."""
    decoder = codecs.getincrementaldecoder(encoding)()
    held: bytes | None = None  # a chunk behind, to know which is the last
    for chunk in chunks:
        if held is not None:
            yield from _decoded(decoder, held, isinstance(chunk, Dropped), encoding, where, place)
            place += len(held)
            held = None
        if isinstance(chunk, Dropped):
            decoder.reset()
            yield chunk
        else:
            held = chunk
    if held is not None:
        yield from _decoded(decoder, held, True, encoding, where, place)


def _decoded(
    decoder: codecs.IncrementalDecoder, chunk: bytes, final: bool, encoding: str, where: str, place: int
) -> Iterator[str | Dropped]:
    state = decoder.getstate()
    if len(state[0]) > _LONGEST_UNIT:
        raise UserError(f"{where} cannot be read piece by piece in {encoding}; convert it to utf-8")
    try:
        text = decoder.decode(chunk, final)
    except UnicodeError:
        text = "\0"
    if "\0" not in text:
        yield sound(text)
        return
    decoder.setstate(state)
    texts: list[str] = []
    for start in range(0, len(chunk), _STRETCH):
        stretch = chunk[start : start + _STRETCH]
        before = len(decoder.getstate()[0])
        most = int(_MOST_ODD * len(stretch))
        text, odd, zeros, first = _salvaged(decoder, stretch, final and start + _STRETCH >= len(chunk), most)
        place_in_words = f"{where}, byte {place + start - before + first:,}"
        if odd + zeros > most:
            decoder.reset()
            yield "".join(texts)
            texts.clear()
            yield Dropped("odd_stretches", before + len(stretch), where=place_in_words)
            continue
        texts.append(sound(text))
        if odd + zeros:
            yield Dropped("odd_bytes", odd + zeros, where=place_in_words)
    yield "".join(texts)


def _salvaged(decoder: codecs.IncrementalDecoder, data: bytes, final: bool, most: int) -> tuple[str, int, int, int]:
    """The text of some bytes, how many are not in the encoding, how many are zero, and the place of the first.

    Past `most` the numbers are not exact. The place is 0 if there are zeros alone; what the decoder held back counts.
    """
    texts: list[str] = []
    odd = first = 0
    size = len(decoder.getstate()[0]) + len(data)
    while odd <= most:
        state = decoder.getstate()
        try:
            texts.append(decoder.decode(data, final))
            break
        except UnicodeDecodeError as error:
            # What the decoder held back is part of what the error speaks of.
            whole, start, end = error.object, error.start, max(error.end, error.start + 1)
        first = first if odd else size - len(whole) + start
        decoder.setstate((b"", state[1]))
        texts.append(decoder.decode(whole[:start]))
        unfinished, number = decoder.getstate()
        decoder.setstate((b"", number))
        odd += len(unfinished) + end - start
        data = whole[end:]
    text = "".join(texts)
    return text.replace("\0", ""), odd, text.count("\0"), first


def sound(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
