"""A text's tokens as one array, whatever files they lie in: memory-mapped, and checked as they are read."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from superpose.errors import UserError


class TokenText(Protocol):
    """A text's tokens, read by their places: `TokenArray`, or a part of one."""

    def __len__(self) -> int: ...

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]: ...


class TokenArray:
    """Tokens of several shards, one after another.

    Args:
        shards: their tokens, each an array of one dimension and any integer type, usually memory-mapped.
        names: of the shards' files, for messages.
        vocab_size: ids are 0 to vocab_size - 1; a shard with any other is broken.
    """

    def __init__(self, shards: Sequence[npt.NDArray[Any]], names: Sequence[str], vocab_size: int) -> None:
        self._shards, self._names, self._vocab_size = shards, names, vocab_size
        self._starts = [0, *accumulate(map(len, shards))]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The `length` tokens from place `start` on: int64 [length]. After the last token comes the first again.

        Raises:
            UserError: an id is not in the vocabulary, so the shard was altered or belongs to another tokenizer.
        """
        tokens = np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            place = (start + filled) % len(self)
            number = bisect_right(self._starts, place) - 1
            offset = place - self._starts[number]
            part = self._shards[number][offset : offset + length - filled]
            if int(part.max()) >= self._vocab_size or int(part.min()) < 0:
                raise UserError(
                    f"{self._names[number]} holds token {int(part.max())}, which is not in its vocabulary of "
                    f"{self._vocab_size}: the file was altered; check all with: superpose data verify"
                )
            tokens[filled : filled + len(part)] = part
            filled += len(part)
        return tokens
