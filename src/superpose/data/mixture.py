"""Which of a text's named sources each row of a stage is of.

    shares    web 0.75, code 0.25              rows 0, 1, 2 ... of a stage are shared out one by one:
    rows      w c w w w c w w w c w w ...      after any number of them each source has its share

A row's source is a function of its number in the stage alone, so resuming costs nothing and it does not matter how
many ranks share a step's rows. Sources are split in two, and each half again (`RowShares`): with two sources none is
ever more than half a row away from its share, with three less than one row, with any number less than two, however
long the stage is.
"""

import heapq
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from superpose.core.stage import exact_mixture
from superpose.data.sources import NamedSource
from superpose.data.uneven import StepRows
from superpose.errors import UserError

Mixture = Mapping[str, float]
"""Share of a stage's rows that is of each named source; they add up to 1, and a source that is left out has none."""


def check_names(mixture: Mixture, names: Collection[str], where: str) -> None:
    """A UserError if a mixture names a source that the text does not have."""
    if not names:
        raise UserError(
            f"{where} shares out named sources, and the text has none; name them where it is prepared (superpose "
            f"prepare --names, data.corpus), give a WindowPlan of your own the sources, or leave the mixture out"
        )
    for name in mixture:
        if name not in names:
            raise UserError(f"{where} names the source {name!r}; the text has {', '.join(names)}")


def exact_shares(mixture: Mixture | None, sources: Mapping[str, NamedSource], where: str) -> dict[str, Fraction]:
    """The share of each source that has one, in the order of the sources; they add up to 1.

    Args:
        mixture: shares by name, see `superpose.core.stage.exact_mixture`; None for those that the sources have of the
            text's tokens.
        sources: of the text.
        where: what messages call the mixture.

    Raises:
        UserError: a name is none of the sources', or there is no text of it.
    """
    check_names(mixture or {}, sources, where)
    if mixture is None:
        total = sum(source.num_tokens for source in sources.values())
        return {name: Fraction(source.num_tokens, total) for name, source in sources.items() if source.num_tokens}
    shares = exact_mixture(mixture)
    for name, share in shares.items():
        if not sources[name].num_tokens:
            raise UserError(
                f"{where} gives {name} a share of {float(share):g}, and there is no text of it; leave it out"
            )
    return {name: shares[name] for name in sources if name in shares}


def rows_of_source(shares: "RowShares", name: str, steps: Sequence[StepRows]) -> list[StepRows]:
    """The rows of each step of a stage that are of a source, where rows are of several lengths.

    Those of each length are shared out by themselves: so tokens are shared out as rows are.
    """
    own: list[StepRows] = []
    seen: dict[int, tuple[int, int]] = {}  # rows of a length so far, and how many of them are of the source
    for rows in steps:
        counts = []
        for count, tokens in ((rows.bags, rows.bag_tokens), (rows.ordinary, rows.ordinary_tokens)):
            before, own_before = seen.get(tokens, (0, 0))
            after = shares.rows(before + count).get(name, 0) if count else own_before
            seen[tokens] = before + count, after
            counts.append(after - own_before)
        own.append(rows._replace(bags=counts[0], ordinary=counts[1]))
    return own


class _Split(NamedTuple):
    """Rows shared out in two: the source's number or a further split, and the share that goes to the first."""

    first: "int | _Split"
    second: "int | _Split"
    share: Fraction

    def of_first(self, count: int) -> int:
        """How many of so many rows go to the first: the nearest whole number, so its error is half a row."""
        return (2 * count * self.share.numerator + self.share.denominator) // (2 * self.share.denominator)


class RowShares:
    """Which source each row of a stage is of.

    Rows are shared out by a tree of splits in two (Huffman's: the two smallest shares are put together first). Each
    split gives its first side the nearest whole number to its share of the rows that reach it, after any number of
    rows; of a row's number in the whole that makes its number in its source. An inner split has at most two thirds
    of the one above, so the error of a source's count stays below half a row x (1 + 1 + 2/3 + 4/9 ...) = two rows.

    Args:
        shares: by name, above 0; they add up to 1.
    """

    def __init__(self, shares: Mapping[str, Fraction]) -> None:
        self.names = tuple(shares)
        assert sum(shares.values()) == 1
        assert min(shares.values()) > 0
        # The second number breaks ties, so that the tree is the same everywhere.
        heap: list[tuple[Fraction, int, int | _Split]] = [
            (share, number, number) for number, share in enumerate(shares.values())
        ]
        heapq.heapify(heap)
        for order in range(len(heap), 2 * len(heap) - 1):
            one, _, first = heapq.heappop(heap)
            other, _, second = heapq.heappop(heap)
            heapq.heappush(heap, (one + other, order, _Split(first, second, one / (one + other))))
        self._root = heap[0][2]

    def place(self, row: int) -> tuple[str, int]:
        """The source of a stage's row, counted from 0, and how many rows of that source come before it."""
        node = self._root
        while isinstance(node, _Split):
            before = node.of_first(row)
            node, row = (node.first, before) if node.of_first(row + 1) > before else (node.second, row - before)
        return self.names[node], row

    def rows(self, count: int) -> dict[str, int]:
        """How many of a stage's first `count` rows are of each source."""
        rows: dict[str, int] = {}
        nodes = [(self._root, count)]
        while nodes:
            node, reached = nodes.pop()
            if isinstance(node, _Split):
                first = node.of_first(reached)
                nodes += [(node.first, first), (node.second, reached - first)]
            else:
                rows[self.names[node]] = reached
        return {name: rows[name] for name in self.names}
