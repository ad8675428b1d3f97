"""What an implementation makes of a window: a `Reading`, from the whole step or from fold and loss.

Shapes: B rows, L latents, S bag, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from superpose.conform.finding import NotCheckedError
from superpose.conform.implementation import Implementation, accepts
from superpose.conform.probe import Reading, read_loss, read_step
from superpose.core.fold import IGNORE_INDEX

VOCAB_SIZE = 64
"""Enough for the windows of all checks."""

NOISE = 1e-6
"""Of shares and weights that are computed in float64."""


def window_of(rows: int, latents: int, bag_size: int) -> Tensor:
    """Distinct tokens from 1 on, so that a token names its place: [rows, S x (L + 1)]."""
    length = bag_size * (latents + 1)
    return 1 + torch.arange(rows * length).view(rows, length)


def observe(implementation: Implementation, window: Tensor, bag_size: int, **arguments: Any) -> Reading:
    """What the step, or fold and loss, make of a window.

    Raises:
        NotCheckedError: the gradient is not that of a softmax, so it does not tell what was asked for.
    """
    reading = observe_any(implementation, window, bag_size, **arguments)
    if reading.tilt > NOISE:
        raise NotCheckedError("the loss is no cross-entropy, see error 2")
    return reading


def observe_any(implementation: Implementation, window: Tensor, bag_size: int, **arguments: Any) -> Reading:
    """`observe`, whatever the loss."""
    if implementation.step is not None:
        return read_step(implementation.step, window, bag_size, VOCAB_SIZE, **arguments)
    inputs, targets = folded(implementation, window, bag_size)
    assert implementation.loss is not None
    reading = read_loss(implementation.loss, targets, VOCAB_SIZE, **arguments)
    valid = inputs != IGNORE_INDEX
    hot = F.one_hot(inputs.masked_fill(~valid, 0), VOCAB_SIZE) * valid.unsqueeze(-1)
    saw = hot.sum(dim=2).double() / valid.sum(dim=-1, keepdim=True).clamp(min=1)
    return Reading(reading.value, saw, reading.asked, reading.counts, reading.tilt, reading.logits)


def observe_padded(implementation: Implementation, window: Tensor, padding: Tensor, bag_size: int) -> Reading:
    """`observe` with padding where `padding` [as the window] holds, told by a mask if the step takes one.

    Raises:
        NotCheckedError: as `observe`; or the step knows no padding: it takes no mask, and fails on `IGNORE_INDEX`.
    """
    if implementation.step is not None and accepts(implementation.step, "attention_mask"):
        return observe(implementation, window, bag_size, attention_mask=(~padding).long())
    try:
        return observe(implementation, window.masked_fill(padding, IGNORE_INDEX), bag_size)
    except (IndexError, RuntimeError) as error:
        if implementation.step is None:
            raise
        raise NotCheckedError(
            f"padding: step takes no attention_mask, and IGNORE_INDEX in its window raises {type(error).__name__}"
        ) from None


def folded(implementation: Implementation, window: Tensor, bag_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, L, S] of the implementation's fold, also at bag size 1.

    Raises:
        ValueError: they have another shape.
    """
    assert implementation.fold is not None
    bags = []
    for name, part in zip(("inputs", "targets"), implementation.fold(window, bag_size), strict=True):
        single = bag_size == 1 and isinstance(part, Tensor) and part.dim() == 2
        values = part.unsqueeze(-1) if single else part
        if not isinstance(values, Tensor) or values.dim() != 3 or values.shape[::2] != (len(window), bag_size):
            shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"fold returned {name} {shape}; expected [{len(window)}, latents, {bag_size}]")
        bags.append(values)
    inputs, targets = bags
    if targets.shape[1] > inputs.shape[1]:
        raise ValueError(f"fold returned {targets.shape[1]} bags of targets for {inputs.shape[1]} bags of inputs")
    return inputs, targets


def step_of(implementation: Implementation) -> Any:
    """The step.

    Raises:
        NotCheckedError: there is none.
    """
    if implementation.step is None:
        raise NotCheckedError("needs step")
    return implementation.step
