"""What a row of logits depends on: tokens of a window are changed, one place after another, then row by row.

Shapes: B rows, T tokens of a window, R rows of logits, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from superpose.conform.reading import MIXED, NotCheckedError, largest


def depends_on(
    logits_of: Callable[[Tensor], Tensor], window: Tensor, spare: Tensor, ignored: int
) -> tuple[Tensor, Tensor, Tensor]:
    """On which row of a window, on which place of it last, both [R], and on which places at all [R, T].

    Args:
        logits_of: window [B, T] to logits [R, V].
        window: [B, T].
        spare: tokens to put in its places.
        ignored: id whose places are left as they are.
    """
    base = logits_of(window)

    def differs(other: Tensor) -> Tensor:
        logits = logits_of(torch.where(window == ignored, window, other))
        if logits.shape != base.shape:
            raise NotCheckedError("the number of positions depends on which tokens are in the window")
        return (logits - base).nan_to_num(0).abs().amax(-1) > 1e-7 * largest(base)

    rows, length = window.shape
    seen = torch.zeros(len(base), length, dtype=torch.bool)
    for place in range(length):
        other = window.clone()
        other[:, place] = spare[(place + torch.arange(rows)) % len(spare)]
        seen[:, place] = differs(other)
    of_row = torch.zeros(len(base), rows, dtype=torch.bool)
    for row in range(rows):
        other = window.clone()
        other[row] = other[row].roll(1)
        other[row, 0] = spare[0]
        of_row[:, row] = differs(other)
    row_of = torch.where(of_row.any(-1), of_row.long().argmax(-1), -1)
    row_of = torch.where(of_row.sum(-1) > 1, MIXED, row_of)
    return row_of, torch.where(seen, torch.arange(length), -1).amax(-1), seen
