"""Places in which windows are cut, and the tokens that stand in them::

tokens    d d d d d e d d e          two documents, ended by e
joined    d d d d|d e d d|e ..       places are tokens; bags of 4 run across documents
aligned   d d d d|d e . .|d d e .    documents fill whole bags; the places marked . hold nothing
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from superpose.core.fold import IGNORE_INDEX
from superpose.data.tokens import TokenText


@dataclass(frozen=True)
class Grid:
    """Documents that each fill whole bags, from the document `first` on, round and round.

    Joined tokens are one document, which starts where the stream does, in bags of one.
    """

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
        """Places of one pass; they are counted on and on over many."""
        return int(self._place_bounds[-1])

    def read(self, tokens: TokenText, start: int, length: int) -> npt.NDArray[np.int64]:
        """What stands in `length` places from `start` on: tokens, and `IGNORE_INDEX` where nothing does."""
        window = np.full(length, IGNORE_INDEX, dtype=np.int64)
        filled = 0
        while filled < length:
            _, document, offset = self._found(self._place_bounds, start + filled)
            room = int(self._place_bounds[document + 1] - self._place_bounds[document]) - offset
            left = int(self._token_bounds[document + 1] - self._token_bounds[document]) - offset
            count = min(left, length - filled)
            if count > 0:
                token = int(self._token_bounds[document]) + offset + int(self.offsets[self.first])
                window[filled : filled + count] = tokens.read(token, count)
            filled += room
        return window

    def tokens_before(self, place: int) -> int:
        """Tokens in all places before this one, where a bag starts; earlier passes included."""
        passes, document, offset = self._found(self._place_bounds, place)
        return passes * int(self._token_bounds[-1]) + int(self._token_bounds[document]) + offset

    def place_at(self, token: int) -> int:
        """The first place at which a bag may start that leaves nothing before this token unread.

        Inside a document that is the next bag's start, so fewer than `bag_size` tokens are skipped.
        """
        passes, document, offset = self._found(self._token_bounds, token)
        place = int(self._place_bounds[document]) + -(-offset // self.bag_size) * self.bag_size
        return passes * self.places + min(place, int(self._place_bounds[document + 1]))

    @staticmethod
    def _found(bounds: npt.NDArray[np.int64], number: int) -> tuple[int, int, int]:
        """The pass a place or token is in, its document, and where in that it stands."""
        passes, within = divmod(number, int(bounds[-1]))
        document = int(np.searchsorted(bounds, within, "right")) - 1
        return passes, document, within - int(bounds[document])
