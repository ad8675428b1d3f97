"""Where the rows of a stage start whose rows are all as long: stretches of windows, shuffled among themselves.

    place in the grid   0 ................... end of a pass ................... end of the stage
                        | stretch: shuffled   |+| stretch: shuffled            |
                                               + a window that runs into the next pass is read last

`superpose.data.uneven` does the same for rows of several lengths.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from superpose.core.draws import random_bits
from superpose.data.permute import permute


@dataclass(frozen=True)
class Stretch:
    """Consecutive windows of one stage within one pass over the corpus, shuffled among themselves.

    Attributes:
        stage: number of its stage.
        first_row: number of its first row, counted from the start of the stage.
        start: place of its first window in the stage's grid.
        width: places from one window to the next.
        windows: how many there are.
        shuffled: how many of them are shuffled; one that runs into the next pass is read last.
    """

    stage: int
    first_row: int
    start: int
    width: int
    windows: int
    shuffled: int

    @property
    def stop(self) -> int:
        """The place after its last window."""
        return self.start + self.windows * self.width

    def place(self, row: int, *key: int | str) -> int:
        """The place in the grid where a row of the stage starts, which is one of this stretch.

        Args:
            key: of the shuffling.
        """
        index = row - self.first_row
        if index < self.shuffled:
            index = permute(index, self.shuffled, random_bits(*key))
        return self.start + index * self.width


def cut_stretches(stage: int, rows: int, start: int, width: int, places: int, last: bool) -> Iterator[Stretch]:
    """The stretches of a stage, in turn.

    Args:
        stage: its number.
        rows: of the whole stage.
        start: place of its first window in the grid.
        width: places from one window to the next.
        places: of a pass over the corpus.
        last: whether no stage comes after it.
    """
    row = 0
    while row < rows:
        end_of_pass = (start // places + 1) * places
        whole = (end_of_pass - start) // width
        starting = -(-(end_of_pass - start) // width)
        # Nothing comes after the last stage, so it may choose among all that is left of the pass. Its order then does
        # not depend on how long it is: a longer run begins with the steps of a shorter one.
        windows = starting if last else min(rows - row, starting)
        stretch = Stretch(stage, row, start, width, windows, min(windows, whole))
        yield stretch
        row, start = row + windows, stretch.stop
