"""Where the tokens of a corpus stand: in a row, or so that every document starts a new bag.

    tokens    d d d d d e d d e          two documents, ended by e
    joined    d d d d|d e d d|e ..       places are tokens; bags of 4 run across documents
    aligned   d d d d|d e . .|d d e .    documents fill whole bags; the places marked . hold nothing

A grid turns places, in which windows are cut, into tokens. Places are counted on and on over many passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from superpose.core.fold import IGNORE_INDEX
from superpose.data.tokens import TokenArray


@dataclass(frozen=True)
class Joined:
    """Tokens one after another, from the place `origin` of the corpus on, round and round."""

    num_tokens: int
    origin: int

    @property
    def places(self) -> int:
        """Places of one pass."""
        return self.num_tokens

    def read(self, tokens: TokenArray, start: int, length: int) -> npt.NDArray[np.int64]:
        """What stands in `length` places from `start` on."""
        return tokens.read(start + self.origin, length)

    def tokens_before(self, place: int) -> int:
        """Tokens in all places before this one, earlier passes included."""
        return place

    def place_at(self, token: int) -> int:
        """The first place at which a bag may start that leaves nothing before this token unread."""
        return token


@dataclass(frozen=True)
class Aligned:
    """Documents that each fill whole bags, from the document `first` on, round and round."""

    offsets: npt.NDArray[np.int64]
    """Start of each document and end of the last."""
    first: int
    bag_size: int

    @cached_property
    def _token_bounds(self) -> npt.NDArray[np.int64]:
        """Tokens before each document of a pass, [documents + 1]."""
        return np.concatenate([[0], np.cumsum(np.roll(np.diff(self.offsets), -self.first))])

    @cached_property
    def _place_bounds(self) -> npt.NDArray[np.int64]:
        """Places before each document of a pass, [documents + 1]."""
        return np.concatenate([[0], np.cumsum(-(-np.diff(self._token_bounds) // self.bag_size) * self.bag_size)])

    @property
    def places(self) -> int:
        return int(self._place_bounds[-1])

    def read(self, tokens: TokenArray, start: int, length: int) -> npt.NDArray[np.int64]:
        """What stands in `length` places from `start` on: tokens, and `IGNORE_INDEX` where nothing does."""
        window = np.full(length, IGNORE_INDEX, dtype=np.int64)
        filled = 0
        while filled < length:
            place = (start + filled) % self.places
            document = int(np.searchsorted(self._place_bounds, place, "right")) - 1
            offset = place - int(self._place_bounds[document])
            room = int(self._place_bounds[document + 1]) - place
            left = int(self._token_bounds[document + 1] - self._token_bounds[document]) - offset
            count = min(left, length - filled)
            if count > 0:
                token = int(self._token_bounds[document]) + offset + int(self.offsets[self.first])
                window[filled : filled + count] = tokens.read(token, count)
            filled += room
        return window

    def tokens_before(self, place: int) -> int:
        """As for `Joined`; `place` is one where a bag starts."""
        passes, within = divmod(place, self.places)
        document = int(np.searchsorted(self._place_bounds, within, "right")) - 1
        token = int(self._token_bounds[document]) + within - int(self._place_bounds[document])
        return passes * int(self._token_bounds[-1]) + token

    def place_at(self, token: int) -> int:
        """As for `Joined`; inside a document at the next bag's start, so fewer than `bag_size` tokens are skipped."""
        passes, within = divmod(token, int(self._token_bounds[-1]))
        document = int(np.searchsorted(self._token_bounds, within, "right")) - 1
        offset = within - int(self._token_bounds[document])
        place = int(self._place_bounds[document]) + -(-offset // self.bag_size) * self.bag_size
        return passes * self.places + min(place, int(self._place_bounds[document + 1]))


Grid = Joined | Aligned
