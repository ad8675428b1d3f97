"""Token stores that others made: nanoGPT's and llm.c's .bin, and Megatron's .bin with .idx, read as needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from superpose.data.account import Dropped
from superpose.data.formats import foreign_format, sibling, with_suffix
from superpose.errors import UserError
from superpose.places import open_binary, stat_of

TokenType = Literal["auto", "uint16", "uint32", "int32", "int64"]
TOKEN_PIECE = 4096
"""Tokens of a piece: where there are no ends of text, tokens are cut as long texts are."""

# llm.c: 256 int32 of header, of which the first three are magic number, version and number of tokens.
_HEADER = 256 * 4
_LLM_C = {20240520: (1, "<u2"), 20240801: (7, "<u4")}

_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4"}

# Of a file without a header so many stretches of so many bytes are looked at.
_LOOKS, _LOOK = 16, 2**16
# Fewer numbers than these can look like anything.
_FEW = 64
# A document that is longer is cut.
_LONGEST_DOCUMENT = 2**22


@dataclass(frozen=True)
class Layout:
    """How tokens lie in a file."""

    dtype: str
    offset: int
    """Bytes of header."""
    count: int

    @property
    def width(self) -> int:
        """Bytes of a token."""
        return np.dtype(self.dtype).itemsize


class _Tokens:
    """The tokens of a file, of which only what is asked for is read."""

    def __init__(self, file: str, stream: BinaryIO, layout: Layout) -> None:
        self._file, self._stream, self._layout = file, stream, layout

    def __len__(self) -> int:
        return self._layout.count

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        start, stop, _ = part.indices(len(self))
        self._stream.seek(self._layout.offset + start * self._layout.width)
        content = self._stream.read(max(0, stop - start) * self._layout.width)
        if len(content) != max(0, stop - start) * self._layout.width:
            raise UserError(f"{self._file} was cut short while it was read; start again")
        return np.frombuffer(content, self._layout.dtype)


@contextmanager
def _opened(file: str, layout: Layout) -> Iterator[_Tokens]:
    with open_binary(file) as stream:
        yield _Tokens(file, stream, layout)


def layout_of(file: str, dtype: TokenType, vocab_size: int) -> Layout:
    """How the tokens lie in a .bin file: by its header, or as `dtype` says, or as its numbers look.

    Raises:
        UserError: its header and its size contradict each other, it is another program's, or its type cannot be told.
    """
    size, _ = stat_of(file)
    with open_binary(file) as stream:
        start = stream.read(32)
    magic, version, count = np.frombuffer(start[:12].ljust(12, b"\0"), "<i4").tolist()
    if magic in _LLM_C and size >= _HEADER:
        known, kind = _LLM_C[magic]
        if version != known:
            raise UserError(
                f"{file} has llm.c's header {magic} of version {version}, and version {known} is read; make it again"
            )
        if count < 0 or size != _HEADER + count * np.dtype(kind).itemsize:
            raise UserError(f"{file} has llm.c's header with {count} tokens, but {size} bytes; make it again")
        if dtype not in ("auto", np.dtype(kind).name):
            raise UserError(f"{file} has llm.c's header for {np.dtype(kind).name}; leave out dtype, which is {dtype}")
        return Layout(kind, _HEADER, count)
    if dtype == "auto" and (foreign := foreign_format(start)):
        raise UserError(
            f"{file} is {foreign}, and of .bin files raw tokens, llm.c's and Megatron's are read; write its tokens as "
            f"raw uint16 or uint32, or name their type with --dtype if there is no header"
        )
    kind = _guessed(file, size, vocab_size) if dtype == "auto" else np.dtype(dtype).newbyteorder("<").str
    width = np.dtype(kind).itemsize
    if size == 0 or size % width:
        raise UserError(
            f"{file} has {size} bytes, which is no whole number of {np.dtype(kind).name} tokens; make it again"
        )
    return Layout(kind, 0, size // width)


def _guessed(file: str, size: int, vocab_size: int) -> str:
    """The type of a raw file's tokens: the widest of which all numbers are ids, since ids of fewer bytes, taken
    together, are too large, and of more bytes, taken apart, half are zero or next to it."""
    looks: dict[str, npt.NDArray[Any]] = {}
    with open_binary(file) as stream:
        content = b""
        for place in np.linspace(0, max(0, size - _LOOK), _LOOKS, dtype=np.int64) // 8 * 8 if size > _LOOK else [0]:
            stream.seek(int(place))
            content += stream.read(_LOOK) if size > _LOOK else stream.read()
    for kind in ("<i8", "<u4", "<u2"):
        width = np.dtype(kind).itemsize
        if size % width == 0:
            looks[kind] = np.frombuffer(content[: len(content) // width * width], kind)
    fitting = [kind for kind, ids in looks.items() if len(ids) and ids.min() >= 0 and ids.max() < vocab_size]
    what = f"{file} has no header, and its numbers"
    if not looks:
        return "<u2"
    if not fitting:
        raise UserError(
            f"{what} are no ids of a vocabulary of {vocab_size:,}, whether of 16, 32 or 64 bits; name the tokenizer "
            f"they were made with, or their type with --dtype if you know better"
        )
    if fitting == ["<u2"] and vocab_size > 2**16:
        raise UserError(
            f"{what} look like uint16, which cannot hold a vocabulary of {vocab_size:,}; name the tokenizer they were "
            f"made with, or say --dtype uint16 if they are ids of this one all the same"
        )
    ids = looks[fitting[0]]
    if len(fitting) > 1 and (len(ids) < _FEW or ids.min() == ids.max()):
        names = " or ".join(np.dtype(kind).name for kind in fitting)
        raise UserError(f"{what} may be {names}; say which with --dtype")
    return fitting[0]


def has_documents(file: str, layout: Layout, end_of_text: int) -> bool:
    """Whether something follows an end of text in a file, which is looked for as far as documents are not cut."""
    with _opened(file, layout) as tokens:
        limit = min(len(tokens), _LONGEST_DOCUMENT)
        return _next(tokens, 0, end_of_text, limit) < min(limit, len(tokens) - 1)


def read_tokens(
    file: str, layout: Layout, start: int, stop: int, end_of_text: int, piece: int
) -> Iterator[npt.NDArray[np.int64] | Dropped]:
    """Documents that start at places `start` to `stop - 1`, wherever they end; or what is between, in pieces."""
    if start == 0 and layout.offset:
        yield Dropped("framing", layout.offset)
    with _opened(file, layout) as tokens:
        limit = stop if piece else len(tokens)
        place = start if piece or start == 0 else _next(tokens, start - 1, end_of_text, limit) + 1
        first, used = place, 0
        while place < stop:
            end = _next(tokens, place, end_of_text, limit)
            used += end - place
            yield from _pieces(tokens, place, end, piece)
            place = end + 1
        ends = max(0, min(place, limit) - first - used)
    yield Dropped("framing", ends * layout.width, ends)


def _pieces(tokens: _Tokens, first: int, stop: int, piece: int) -> Iterator[npt.NDArray[np.int64]]:
    size = piece or _LONGEST_DOCUMENT
    for place in range(first, stop, size):
        yield tokens[place : min(place + size, stop)].astype(np.int64)


def _next(tokens: _Tokens, place: int, end_of_text: int, limit: int) -> int:
    """Place of the next end of text, or the limit."""
    step = 2**12
    while place < limit:
        found = np.flatnonzero(tokens[place : min(place + step, limit)] == end_of_text)
        if len(found):
            return place + int(found[0])
        place += step
        step = min(2 * step, 2**22)
    return limit


def megatron_index(file: str) -> tuple[str, Layout, npt.NDArray[np.int64]]:
    """The data file of Megatron's indexed dataset, how its tokens lie, and documents' bounds; from either name."""
    index, data = sibling(file, ".idx"), sibling(file, ".bin")
    if index is None or data is None:
        absent = with_suffix(file, ".idx" if index is None else ".bin")
        raise UserError(f"{absent} is not there; Megatron's .bin and .idx belong together")
    with open_binary(index) as stream:
        content = stream.read()
    damaged = UserError(f"{index} is no index of Megatron's, or damaged; make it again")
    if content[:9] != _MEGATRON or len(content) < 34:
        raise damaged
    version, code = int.from_bytes(content[9:17], "little"), content[17]
    sequences, marks = (int(number) for number in np.frombuffer(content, "<u8", 2, 18))
    if version != 1 or code not in _MEGATRON_DTYPES:
        raise UserError(f"{index} has version {version} and dtype {code}; expected version 1 and whole numbers")
    if len(content) < 34 + sequences * 12 + marks * 8 or sequences == 0 or marks < 2:
        raise damaged
    kind: np.dtype[Any] = np.dtype(_MEGATRON_DTYPES[code])
    sizes = np.frombuffer(content, "<i4", sequences, 34).astype(np.int64)
    pointers = np.frombuffer(content, "<i8", sequences, 34 + 4 * sequences)
    documents = np.frombuffer(content, "<i8", marks, 34 + 12 * sequences)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if (sizes < 0).any() or (np.diff(documents) < 0).any() or documents[0] != 0 or documents[-1] != sequences:
        raise damaged
    # Sequences lie one after another, so a document is a stretch of tokens.
    size, _ = stat_of(data)
    if (pointers != starts[:-1] * kind.itemsize).any() or size != starts[-1] * kind.itemsize:
        raise UserError(f"{data} has {size} bytes, {index} expects {starts[-1] * kind.itemsize}; make both again")
    return data, Layout(kind.str, 0, int(starts[-1])), starts[documents]


def read_megatron(
    file: str, start: int, stop: int, end_of_text: int, piece: int
) -> Iterator[npt.NDArray[np.int64] | Dropped]:
    """Documents `start` to `stop - 1`, each without the end of text it may carry."""
    data, layout, bounds = megatron_index(file)
    ends = 0
    with _opened(data, layout) as tokens:
        for first, last in pairwise(bounds[start : stop + 1].tolist()):
            if last > first and tokens[last - 1 : last][0] == end_of_text:
                last, ends = last - 1, ends + 1
            yield from _pieces(tokens, first, last, piece)
    yield Dropped("framing", ends * layout.width, ends)
