"""Named sources of a text: which of its documents are of each, and the tokens of one as a text of their own.

text      w w w c c w w w c w w ...        documents of `web` and `code`, in one order
web       w w w w w w w w ...              each source is a text of its own, in the same order,
code      c c c ...                        read round and round by itself
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from superpose.data.tokens import TokenText
from superpose.errors import UserError

SOURCE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
MOST_SOURCES = 2**16
"""With names: their numbers have 16 bits in a store."""


@dataclass(frozen=True, eq=False)
class NamedSource:
    """Where the documents of one source stand among a text's tokens."""

    starts: npt.NDArray[np.int64]
    """Of each document, where it starts in the text, [documents]."""
    offsets: npt.NDArray[np.int64]
    """The same if the source's documents were all there is: starts and end of the last, [documents + 1]."""
    bytes: int
    """UTF-8 bytes of its text, ends of documents not counted."""

    @property
    def documents(self) -> int:
        return len(self.starts)

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])


@dataclass(frozen=True)
class SourceTokens:
    """The tokens of one source as if they were a text of their own: a view that is read from the whole text."""

    tokens: TokenText
    source: NamedSource

    def __len__(self) -> int:
        return self.source.num_tokens

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The `length` tokens from place `start` on: int64 [length]. After the last token comes the first again."""
        starts, offsets = self.source.starts, self.source.offsets
        found = np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            place = (start + filled) % len(self)
            document = int(np.searchsorted(offsets, place, "right")) - 1
            within = place - int(offsets[document])
            count = min(int(offsets[document + 1]) - place, length - filled)
            found[filled : filled + count] = self.tokens.read(int(starts[document]) + within, count)
            filled += count
        return found


def checked_names(sources: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The names of some sources, each once, in their order; none where they have no names.

    Args:
        sources: name, or an empty one, and location of each.

    Raises:
        UserError: some have a name and some have none, one is no name, or there are too many.
    """
    names = tuple(dict.fromkeys(name for name, _ in sources))
    if not any(names):
        return ()
    for name, location in sources:
        if not name:
            raise UserError(f"some sources have a name and {location} has none; give all of them one, or none")
        if not re.fullmatch(SOURCE_NAME, name):
            raise UserError(f"{name!r} is no name of a source; give letters and digits, and _ . - between them")
    if len(names) > MOST_SOURCES:
        raise UserError(f"{len(names):,} names of sources were given; expected at most {MOST_SOURCES:,}")
    return names


def sources_of(
    names: Sequence[str], origins: npt.NDArray[Any], offsets: npt.NDArray[np.int64], sizes: Sequence[int]
) -> dict[str, NamedSource]:
    """The sources of a text by name.

    Args:
        names: of the sources.
        origins: number of each document's source, [documents].
        offsets: start of each document of the text and end of the last, [documents + 1].
        sizes: bytes of each source's text.
    """
    lengths = np.diff(offsets)
    sources = {}
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        of_source = np.flatnonzero(origins == number)
        own = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths[of_source])])
        sources[name] = NamedSource(offsets[of_source], own, size)
    return sources
