"""Where the bytes of a source go: each is kept, repeated, dropped for a reason, or beyond the size asked for.

    read = train + val + repeated + dropped + beyond

The unit is what a source holds as it is read: of text and of records' texts their bytes in UTF-8, of tokens their bytes
in the file, and of what cannot be read as such its bytes as they stand there (of what cannot be decompressed, the
compressed ones).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from superpose.data.selection import Selection
from superpose.errors import UserError

Reason = Literal[
    "framing",
    "white_space",
    "no_text",
    "not_text",
    "odd_bytes",
    "odd_stretches",
    "records",
    "compression",
    "columns",
    "files",
]

_WORDS: dict[Reason, str] = {
    "framing": "byte order marks, headers and ends of documents",
    "white_space": "documents of white space",
    "no_text": "records without text",
    "not_text": "files that are not text",
    "odd_bytes": "places with bytes that are not in the encoding, or zero",
    "odd_stretches": "stretches that are not in the encoding",
    "records": "broken records",
    "compression": "stretches that cannot be decompressed",
    "columns": "damaged row groups or batches",
    "files": "damaged files",
}
_DAMAGE: tuple[Reason, ...] = ("odd_bytes", "odd_stretches", "records", "compression", "columns", "files")


@dataclass(frozen=True)
class Dropped:
    """Something met while reading that is no document."""

    reason: Reason
    bytes: int
    count: int = 1
    where: str = ""
    """File and place, where a person may want to look at it."""

    @property
    def is_gap(self) -> bool:
        """Whether what stands before and after it does not belong together."""
        return self.reason not in ("odd_bytes", "framing")


class Count(BaseModel, frozen=True, extra="forbid"):
    """Several of a kind."""

    count: Annotated[int, Field(ge=0)] = 0
    bytes: Annotated[int, Field(ge=0)] = 0
    first: str = ""
    """Where the first of them is."""

    def __add__(self, other: "Count") -> "Count":
        return Count(count=self.count + other.count, bytes=self.bytes + other.bytes, first=self.first or other.first)


Drops = dict[Reason, Count]


class Account(BaseModel, frozen=True, extra="forbid"):
    """Of one source, in bytes."""

    source: str
    read: Annotated[int, Field(ge=0)]
    train: Count
    val: Count
    repeated: Count
    beyond_train: Count
    """What the mixture or the limit has no use for."""
    beyond_val: Count
    dropped: Drops

    @property
    def balance(self) -> int:
        """What was read less all that is accounted for: 0."""
        counts = (self.train, self.val, self.repeated, self.beyond_train, self.beyond_val, *self.dropped.values())
        return self.read - sum(count.bytes for count in counts)

    @property
    def damaged(self) -> float:
        """Share of what was read that is damaged."""
        return sum(count.bytes for reason, count in self.dropped.items() if reason in _DAMAGE) / max(1, self.read)

    def describe(self) -> str:
        """The sum in a line."""
        terms = [f"{self.train.bytes:,} to train on", f"{self.val.bytes:,} held out"]
        beyond = self.beyond_train + self.beyond_val
        if self.repeated.count:
            terms.append(f"{self.repeated.bytes:,} in {self.repeated.count:,} repeated documents")
        if beyond.count:
            terms.append(f"{beyond.bytes:,} beyond the size asked for")
        return f"{self.source}: {self.read:,} bytes read = {' + '.join(terms + described_drops(self.dropped))}"


def note(drops: Drops, dropped: Dropped) -> None:
    """Adds something that was dropped."""
    count = Count(count=dropped.count, bytes=dropped.bytes, first=dropped.where)
    drops[dropped.reason] = drops.get(dropped.reason, Count()) + count


def joined(parts: Iterable[Drops]) -> Drops:
    """The sum of several tallies."""
    counts: Drops = {}
    for part in parts:
        for reason, count in part.items():
            counts[reason] = counts.get(reason, Count()) + count
    return counts


def described_drops(dropped: Drops) -> list[str]:
    """Each reason in words, those that are damage with the place of the first."""
    return [
        f"{count.bytes:,} in {count.count:,} {_WORDS[reason]}" + (f" (first: {count.first})" if count.first else "")
        for reason, count in sorted(dropped.items(), key=lambda item: list(_WORDS).index(item[0]))
        if count.count or count.bytes
    ]


def account_for(
    names: Sequence[str],
    selection: Selection,
    sources: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    dropped: Sequence[Drops],
) -> list[Account]:
    """The account of each source.

    Args:
        names: of the sources.
        selection: of all documents.
        sources: number of each document's source.
        sizes: bytes of each document as it was read; 0 of one that was dropped.
        dropped: of each source.
    """

    def counted(documents: npt.NDArray[np.int64]) -> list[Count]:
        origin = sources[documents]
        numbers = np.bincount(origin, minlength=len(names))
        # Sums of whole numbers below 2^53 are exact.
        weights = np.bincount(origin, weights=sizes[documents], minlength=len(names))
        return [Count(count=int(number), bytes=int(weight)) for number, weight in zip(numbers, weights, strict=True)]

    everything = counted(np.arange(len(sizes)))
    columns = map(
        counted,
        (
            selection.train.documents,
            selection.val.documents,
            selection.repeats,
            selection.beyond_train,
            selection.beyond_val,
        ),
    )
    accounts = []
    for number, (train, val, repeated, beyond_train, beyond_val) in enumerate(zip(*columns, strict=True)):
        account = Account(
            source=names[number],
            read=everything[number].bytes + sum(count.bytes for count in dropped[number].values()),
            train=train,
            val=val,
            repeated=repeated,
            beyond_train=beyond_train,
            beyond_val=beyond_val,
            dropped=dropped[number],
        )
        assert account.balance == 0
        accounts.append(account)
    return accounts


def expect_little_damage(account: Account, most: float, encoding: str) -> None:
    """A UserError if more than the share `most` of a source is damaged."""
    if account.damaged <= most:
        return
    damage: Drops = {reason: count for reason, count in account.dropped.items() if reason in _DAMAGE}
    odd = any(reason in damage for reason in ("odd_bytes", "odd_stretches"))
    hint = f"if it is not in {encoding}, name its encoding; else " if odd else ""
    raise UserError(
        f"{account.source}: {account.damaged:.2%} of it is damaged ({', '.join(described_drops(damage))}), and "
        f"max_damaged is {most:.2%}; {hint}mend it, fetch it again, or allow a larger share"
    )
