"""The multi-hot cross-entropy: one softmax, S targets.

For logits z and a target bag y of S tokens (a multiset: duplicates count) with weights w_i >= 0::

    MCE(z, y) = logsumexp(z) - sum_i w_i z[y_i] / sum_i w_i            (arXiv 2605.06546, section 3.2)

It is the mean of S ordinary cross-entropies, so one logsumexp and one head product serve them all. At
initialisation it is about log V, never log(V) / S; its floor is the entropy of the target (log S for S
distinct tokens). At S = 1 it is `F.cross_entropy`.

This module defines the loss on whole logits, for reading and for small vocabularies; `superpose.core.linear_loss`
computes the same from hidden states without ever holding the logits. Other losses of a bag that the paper tried are in
`superpose.core.ablations`.

Normalisation, everywhere in superpose
    The weights of a position's valid targets are scaled to sum to 1, so a partly filled bag counts as much as
    a full one. `reduction="mean"` divides the sum over positions by the number of positions that have a valid
    target; a position without one contributes nothing, and a batch without one is 0, not NaN. For accumulated
    gradients or several ranks take `reduction="sum"` and divide by `count_positions` of the whole step: the
    result does not depend on how the step was cut.

Shapes: N positions (B rows x L latents), S targets of a position (a bag), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from superpose.core.fold import IGNORE_INDEX

Weighting = Literal["uniform", "power", "exponential", "first"]
Reduction = Literal["mean", "sum", "none"]

_NAMED: dict[Weighting, Callable[[int], float]] = {
    "uniform": lambda place: 1.0,
    "power": lambda place: 1 / place,
    "exponential": lambda place: math.exp(-place),
    "first": lambda place: float(place == 1),
}
"""Weight of a place in the bag, counted from 1."""


def bag_weights(
    bag_size: int,
    weighting: Weighting | Sequence[float] = "uniform",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Weights of a target bag's tokens by their place in the bag, scaled to sum to 1: float32 [S].

    Args:
        bag_size: S, tokens in a bag.
        weighting: "uniform" (the paper's choice up to S = 7), "power" 1/i (steadier from S = 8 on),
            "exponential" exp(-i), "first" (the next token alone), or S numbers of your own.
        device: where the weights are. They are made there, so that a device does not wait for the host.

    Raises:
        ValueError: an unknown name, a wrong number of weights, or weights that are negative or all zero.
    """
    shares = bag_shares(bag_size, weighting)
    if torch.device(device).type == "cpu":
        return torch.tensor(shares, dtype=torch.float32)
    # A tensor of a list is copied from the host, and the host waits until it is; a fill is a launch like any other.
    made = torch.empty(bag_size, dtype=torch.float32, device=device)
    for share, place in zip(shares, made, strict=True):
        place.fill_(share)
    return made


def bag_shares(bag_size: int, weighting: Weighting | Sequence[float]) -> list[float]:
    """`bag_weights` as plain numbers."""
    places = range(1, bag_size + 1)
    if isinstance(weighting, str):
        if weighting not in get_args(Weighting):
            raise ValueError(f"weighting is {weighting!r}; choose one of {', '.join(get_args(Weighting))}, or numbers")
        weights = [_NAMED[weighting](place) for place in places]
    else:
        weights = [float(weight) for weight in weighting]
        if len(weights) != bag_size:
            raise ValueError(f"{len(weights)} weights for bags of {bag_size} tokens; give one for each place")
        if not all(map(math.isfinite, weights)) or min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"weights {weights} must be finite, not negative and not all zero")
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def target_weights(targets: Tensor, weighting: Weighting | Sequence[float]) -> Tensor | None:
    """`bag_weights` for targets [..., S], on their device; None where all places weigh the same."""
    if targets.shape[-1] == 1 or weighting == "uniform":
        return None
    return bag_weights(targets.shape[-1], weighting, targets.device)


def count_positions(targets: Tensor, weights: Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Positions with a valid target of non-zero weight, the divisor of `reduction="mean"`: [..., S] to int64 []."""
    valid = targets != ignore_index
    if weights is not None:
        valid = valid & (weights > 0).to(targets.device)
    return valid.any(dim=-1).sum()


def multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits against bags of targets; half-precision logits are summed in float32.

    Equivalent plain PyTorch, for valid targets and uniform weights::

        torch.stack([F.cross_entropy(logits, targets[:, i]) for i in range(S)]).mean()

    Args:
        logits: [..., V].
        targets: [..., S], or [...] for one target a position; ids of 0 to V - 1 or `ignore_index`.
        weights: [S], see `bag_weights`; uniform if not given.
        ignore_index: marks targets that take no part.
        reduction: "mean", "sum" or "none", see the normalisation above.
        z_loss: adds z_loss * logsumexp(logits)^2 to each position that counts, which keeps logits from drifting
            (PaLM, arXiv 2204.02311, section 5).
        label_smoothing: share e of the target that is spread evenly over the vocabulary: (1 - e) times the
            cross-entropy plus e times the mean of -log p, as transformers' `LabelSmoother` has it for one target.

    Returns:
        A scalar, or [...] for "none" (0 for positions without a valid target).

    Raises:
        ValueError: shapes that do not belong together, or an unknown reduction.
    """
    targets = bagged(logits, targets, weights, reduction)
    logits = logits.to(sum_dtype(logits.dtype))
    shares = target_shares(targets, weights, ignore_index, logits.dtype)
    picked = logits.gather(-1, targets.masked_fill(targets == ignore_index, 0))
    lse = logits.logsumexp(dim=-1)
    wanted = (shares * picked).sum(dim=-1)
    if label_smoothing:
        wanted = torch.lerp(wanted, logits.mean(dim=-1), label_smoothing)
    losses = lse - wanted + z_loss * lse.square()
    losses = losses.masked_fill(shares.sum(dim=-1) == 0, 0)
    if reduction == "mean":
        return losses.sum() / count_positions(targets, weights, ignore_index).clamp(min=1)
    return losses.sum() if reduction == "sum" else losses


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of logits, and of sums over the vocabulary: float64 for float64, float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def target_shares(targets: Tensor, weights: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Each target's share of its position's loss: 0 where ignored; they sum to 1, or 0 if none is valid. [..., S]."""
    valid = (targets != ignore_index).to(dtype)
    weighted = valid if weights is None else valid * weights.to(targets.device, dtype)
    mass = weighted.sum(dim=-1, keepdim=True)
    return weighted / mass.masked_fill(mass == 0, 1)


def check_softcap(softcap: float | None) -> None:
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}; give a positive number, or None for no cap")


def bagged(states: Tensor, targets: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """Targets as [..., S], after checking that they belong to hidden states or logits [..., D or V]."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(get_args(Reduction))}")
    if targets.shape == states.shape[:-1]:
        targets = targets.unsqueeze(-1)
    if targets.shape[:-1] != states.shape[:-1]:
        raise ValueError(
            f"targets {list(targets.shape)} do not belong to positions {list(states.shape)}; "
            f"expected {list(states.shape[:-1])}, with the bag as a last dimension if there is one"
        )
    if weights is not None and weights.shape != targets.shape[-1:]:
        raise ValueError(
            f"weights {list(weights.shape)} for bags of {targets.shape[-1]}; give one weight for each place"
        )
    return targets
