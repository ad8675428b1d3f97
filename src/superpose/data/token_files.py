"""Token stores that others made: nanoGPT's and llm.c's .bin, and Megatron's .bin with .idx; memory-mapped."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from superpose.errors import UserError

# llm.c: 256 int32 of header, of which the first three are magic number, version and number of tokens.
_HEADER = 256 * 4
_LLM_C: dict[int, np.dtype[Any]] = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}

_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4"}


def open_tokens(file: Path, dtype: str) -> npt.NDArray[Any]:
    """The tokens of a .bin file: by its header, or as uint16, or as `dtype` says; a UserError if its size is odd."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = np.frombuffer(stream.read(12).ljust(12, b"\0"), "<i4")
    magic, version, count = header.tolist()
    if magic in _LLM_C and size >= _HEADER:
        kind = _LLM_C[magic]
        if version != 1 or count < 0 or size != _HEADER + count * kind.itemsize:
            raise UserError(
                f"{file} has llm.c's header of version {version} and {count} tokens, but {size} bytes; make it again"
            )
        return _mapped(file, kind, _HEADER, count)
    kind = np.dtype("<u4" if dtype == "uint32" else "<u2")
    if size == 0 or size % kind.itemsize:
        raise UserError(f"{file} has {size} bytes, which is no whole number of {kind.name} tokens; make it again")
    return _mapped(file, kind, 0, size // kind.itemsize)


def _mapped(file: Path, kind: np.dtype[Any], offset: int, count: int) -> npt.NDArray[Any]:
    # Nothing cannot be mapped.
    return np.memmap(file, kind, "r", offset, (count,)) if count else np.array([], dtype=kind)


def find_documents(
    tokens: npt.NDArray[Any], start: int, stop: int, end_of_text: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Documents that start at places `start` to `stop - 1`, wherever they end."""
    place = 0 if start == 0 else _next(tokens, start - 1, end_of_text) + 1
    while place < stop:
        end = _next(tokens, place, end_of_text)
        if end > place:
            yield tokens[place:end].astype(np.int64)
        place = end + 1


def _next(tokens: npt.NDArray[Any], place: int, end_of_text: int) -> int:
    """Place of the next end of text, or the number of tokens."""
    step = 2**12
    while place < len(tokens):
        found = np.flatnonzero(tokens[place : place + step] == end_of_text)
        if len(found):
            return place + int(found[0])
        place += step
        step *= 2
    return len(tokens)


def open_megatron(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Tokens of Megatron's indexed datasets and the bounds of documents in them, from the name of either file."""
    index, data = file.with_suffix(".idx"), file.with_suffix(".bin")
    for path in (index, data):
        if not path.is_file():
            raise UserError(f"{path} is not there; Megatron's .bin and .idx belong together")
    content = index.read_bytes()
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
    if (pointers != starts[:-1] * kind.itemsize).any() or data.stat().st_size != starts[-1] * kind.itemsize:
        raise UserError(
            f"{data} has {data.stat().st_size} bytes, {index} expects {starts[-1] * kind.itemsize}; make both again"
        )
    return _mapped(data, kind, 0, int(starts[-1])), starts[documents]


def megatron_documents(
    tokens: npt.NDArray[Any], bounds: npt.NDArray[np.int64], start: int, stop: int, end_of_text: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Documents `start` to `stop - 1`, each without the end of text it may carry."""
    for first, last in pairwise(bounds[start : stop + 1]):
        document = tokens[first:last].astype(np.int64)
        if len(document) and document[-1] == end_of_text:
            document = document[:-1]
        if len(document):
            yield document
