"""Padding and documents. Error 5."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from superpose.conform.bench import Bench
from superpose.conform.body import departs, pooled_into
from superpose.conform.positions import due, need_shift, places_of, taken_by, tokens_at
from superpose.conform.reading import LATENTS, Reading, Replace, WrongError


def check_padding(bench: Bench) -> str:
    """Error 5: padding is not asked for, is in no mean, and what it holds changes nothing."""
    need_shift(bench, bench.sizes)
    subject, bag_size = bench.subject, max(bench.sizes)
    window = bench.window(bag_size)
    tail = torch.zeros_like(window, dtype=torch.bool)
    start = int(due(bench, LATENTS - 2, bag_size).start) + 1
    tail[1, start:] = True  # of the last bag but one, one token is left
    said = []
    if subject.padding_side != "left":
        reading = padded_reading(bench, window, tail, bag_size)
        _not_asked(bench, reading, tail)
        _not_read(bench, window, tail, bag_size)
        said.append("after the text")
    if subject.padding_side != "right":
        head = torch.zeros_like(tail)
        head[1, : bag_size + (bag_size > 1)] = True  # the first bag, and one token of the second
        _compare_padded(bench, window, head, bag_size, first=1)
        _not_read(bench, window, head, bag_size)
        said.append("before it")
    if subject.padding_side == "anywhere" and bag_size > 1 and bench.mode != "output":
        gap = torch.zeros_like(tail)
        gap[1, bag_size + 1 : 2 * bag_size] = True  # of the second bag one token is left
        _compare_padded(bench, window, gap, bag_size, first=0)
        said.append("inside")
    return f"padding {', '.join(said)} is neither asked for nor in a mean"


def _not_asked(bench: Bench, reading: Reading, padding: Tensor) -> None:
    given = reading.asked.clone()
    for number, row in enumerate(reading.row.tolist()):
        if row >= 0:
            text = reading.window[row][~padding[row]]
            given[number, text] = 0
    if given.any():
        number, token = divmod(int(given.argmax()), given.shape[1])
        row = int(reading.row[number])
        at = places_of(given[number], reading.window[row])
        what = tokens_at(at) if at != [-1] else f"token id {token}"
        raise WrongError(f"padding was asked for: {what} of row {row}, with weight {float(given[number, token]):.4f}")


def _not_read(bench: Bench, window: Tensor, padding: Tensor, bag_size: int) -> None:
    """What stands in padded places is of no matter, where a mask tells of them."""
    if not bench.subject.takes("attention_mask"):
        return
    given, sides = told(bench, window, padding)
    usable = bench.usable()
    other = torch.where(padding, usable[~torch.isin(usable, window)][0], given)
    values = [float(bench.step(one, bag_size, **sides).detach()) for one in (given, other)]
    if not math.isclose(*values, rel_tol=bench.plain(bag_size).tolerance):
        raise WrongError(f"the loss is {values[0]:.6f}, and {values[1]:.6f} with other tokens in padded places")


def _compare_padded(bench: Bench, window: Tensor, padding: Tensor, bag_size: int, first: int) -> None:
    """Against ordinary training on the means of what is left of each bag."""
    reading = padded_reading(bench, window, padding, bag_size)
    if not (reading.finite and math.isfinite(reading.value)):
        places = padding[1].nonzero().flatten().tolist()
        raise WrongError(
            f"with padding at {tokens_at(places)} the loss is {reading.value}, and gradients are not all finite"
        )
    _not_asked(bench, reading, padding)
    ordinary = bench.window(1)
    empty = torch.zeros_like(ordinary, dtype=torch.bool)
    size = taken_by(bench, bag_size)
    empty[:, :LATENTS] = padding[:, : LATENTS * size].unflatten(1, (LATENTS, size)).all(-1)
    replace = pooled_into(bench, window, size, ordinary, ~padding)
    expected = padded_reading(bench, ordinary, empty, 1, replace)
    kind, evidence = departs(bench, reading, bag_size, expected, [1], first)
    if kind:
        places = padding[1].nonzero().flatten().tolist()
        raise WrongError(f"with padding at {tokens_at(places)}: {evidence} in ordinary training on what is left")


def check_documents(bench: Bench) -> str:
    """Error 5: a position depends on no token of another document."""
    subject, bag_size, latents = bench.subject, max(bench.sizes), 4
    window = bench.window(bag_size, latents)
    sides: dict[str, Any] = {}
    border = 2 * taken_by(bench, bag_size)
    if subject.end_of_text is not None:
        window[:, border - 1] = subject.end_of_text
    if subject.takes("document_ids"):
        sides["document_ids"] = (torch.arange(window.shape[1]) >= border).long().expand_as(window)
    reading = bench.read(window, bag_size, documents=True, **sides)
    for number in (reading.last >= border).nonzero().flatten().tolist():
        before = reading.seen[number, : border - 1].nonzero().flatten().tolist()
        if before and reading.asked[number].any():
            raise WrongError(
                f"documents end at token {border - 1}, and a position that ends at token "
                f"{int(reading.last[number])} depends on {tokens_at(before)}, of the document before"
            )
    return "no position depends on another document's tokens"


def told(bench: Bench, window: Tensor, padding: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """A window with padding, and the arguments that tell the step of it."""
    subject = bench.subject
    sides: dict[str, Any] = {}
    if subject.takes("labels"):
        sides["labels"] = window.masked_fill(padding, subject.ignored)
    if subject.takes("attention_mask"):
        sides["attention_mask"] = (~padding).long()
    return window.masked_fill(padding, subject.pad_id if sides else subject.ignored), sides


def padded_reading(
    bench: Bench, window: Tensor, padding: Tensor, bag_size: int, replace: Replace | None = None
) -> Reading:
    """The reading of a window with padding; its `window` is the one without."""
    given, sides = told(bench, window, padding)
    return dataclasses.replace(bench.read(given, bag_size, replace, **sides), window=window)
