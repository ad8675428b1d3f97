"""The multi-hot cross-entropy: one softmax, S targets.

For logits z and a target bag y of S tokens (a multiset: duplicates count) with weights w_i >= 0::

    MCE(z, y) = logsumexp(z) - sum_i w_i z[y_i] / sum_i w_i            (arXiv 2605.06546, section 3.2)

It is the mean of S ordinary cross-entropies, so one logsumexp and one head product serve them all. At
initialisation it is about log V, never log(V) / S; its floor is the entropy of the target (log S for S
distinct tokens). At S = 1 it is `F.cross_entropy`.

The paper's variant asks for the bag's total probability instead of each token's (its appendix C; both ended equal)::

    MCEAlt(z, y) = logsumexp(z) - log(sum_i w_i exp(z[y_i]) / sum_i w_i)

With weights that sum to 1 it differs from -log of the sum of the bag's probabilities by the constant log S, which
gives it MCE's scale: log V at initialisation, and cross-entropy at S = 1.

This module defines the loss on whole logits, for reading and for small vocabularies; `superpose.core.linear_loss`
computes the same from hidden states without ever holding the logits.

Normalisation, everywhere in superpose
    A *row* is one latent position. The weights of its valid targets are scaled to sum to 1, so a partly
    filled bag counts as much as a full one. `reduction="mean"` divides the sum over rows by the number of
    rows that have a valid target; a row without one contributes nothing, and a batch without one is 0, not
    NaN. For accumulated gradients or several ranks take `reduction="sum"` and divide by `count_rows` of the
    whole step: the result does not depend on how the step was cut.

Shapes: N rows, S targets of a row, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from superpose.core.fold import IGNORE_INDEX

Weighting = Literal["uniform", "power", "exponential", "first"]
Reduction = Literal["mean", "sum", "none"]
Variant = Literal["mce", "mce_alt"]


def bag_weights(bag_size: int, weighting: Weighting | Sequence[float] = "uniform") -> Tensor:
    """Weights of a target bag's tokens by their place in the bag, scaled to sum to 1: float32 [S].

    Args:
        bag_size: S, tokens in a bag.
        weighting: "uniform" (the paper's choice up to S = 7), "power" 1/i (steadier from S = 8 on),
            "exponential" exp(-i), "first" (the next token alone), or S numbers of your own.

    Raises:
        ValueError: an unknown name, a wrong number of weights, or weights that are negative or all zero.
    """
    place = torch.arange(1, bag_size + 1, dtype=torch.float64)
    if isinstance(weighting, str):
        named = {
            "uniform": torch.ones_like(place),
            "power": 1 / place,
            "exponential": torch.exp(-place),
            "first": (place == 1).double(),
        }
        if weighting not in named:
            raise ValueError(f"weighting is {weighting!r}; choose one of {', '.join(named)}, or give numbers")
        weights = named[weighting]
    else:
        weights = torch.tensor([float(weight) for weight in weighting], dtype=torch.float64)
        if len(weights) != bag_size:
            raise ValueError(f"{len(weights)} weights for bags of {bag_size} tokens; give one for each place")
        if not torch.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
            raise ValueError(f"weights {weights.tolist()} must be finite, not negative and not all zero")
    return (weights / weights.sum()).float()


def target_weights(targets: Tensor, weighting: Weighting | Sequence[float]) -> Tensor | None:
    """`bag_weights` for targets [..., S], on their device; None where all places weigh the same."""
    if targets.shape[-1] == 1 or weighting == "uniform":
        return None
    return bag_weights(targets.shape[-1], weighting).to(targets.device)


def count_rows(targets: Tensor, weights: Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Rows that have a valid target of non-zero weight: the divisor of `reduction="mean"`. [N, S] to int64 []."""
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
    variant: Variant = "mce",
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits against bags of targets; half-precision logits are summed in float32.

    Equivalent plain PyTorch, for valid targets and uniform weights::

        torch.stack([F.cross_entropy(logits, targets[:, i]) for i in range(S)]).mean()

    Args:
        logits: [..., V].
        targets: [..., S], or [...] for one target a row; ids of 0 to V - 1 or `ignore_index`.
        weights: [S], see `bag_weights`; uniform if not given.
        ignore_index: marks targets that take no part.
        reduction: "mean", "sum" or "none", see the normalisation above.
        variant: "mce" or "mce_alt", see above.
        z_loss: adds z_loss * logsumexp(logits)^2 to each row that counts, which keeps logits from drifting
            (PaLM, arXiv 2204.02311, section 5).

    Returns:
        A scalar, or [...] for "none" (0 for rows without a valid target).

    Raises:
        ValueError: shapes that do not belong together, or an unknown reduction or variant.
    """
    targets = bagged(logits, targets, weights, reduction, variant)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    shares = target_shares(targets, weights, ignore_index, logits.dtype)
    picked = logits.gather(-1, targets.masked_fill(targets == ignore_index, 0))
    lse = logits.logsumexp(dim=-1)
    empty = shares.sum(dim=-1) == 0
    if variant == "mce":
        rows = lse - (shares * picked).sum(dim=-1)
    else:
        # A row of nothing but log 0 would have a NaN for a gradient.
        rows = lse - (picked + shares.masked_fill(empty.unsqueeze(-1), 1).log()).logsumexp(dim=-1)
    rows = (rows + z_loss * lse.square()).masked_fill(empty, 0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / count_rows(targets, weights, ignore_index).clamp(min=1)


def target_shares(targets: Tensor, weights: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Each target's share of its row's loss [N, S]: 0 where ignored; a row sums to 1, or 0 if none is valid."""
    valid = (targets != ignore_index).to(dtype)
    weighted = valid if weights is None else valid * weights.to(targets.device, dtype)
    mass = weighted.sum(dim=-1, keepdim=True)
    return weighted / mass.masked_fill(mass == 0, 1)


def bagged(rows: Tensor, targets: Tensor, weights: Tensor | None, reduction: str, variant: str) -> Tensor:
    """Targets as [..., S], after checking that everything belongs together."""
    for setting, value, choices in (("reduction", reduction, Reduction), ("variant", variant, Variant)):
        if value not in get_args(choices):
            raise ValueError(f"{setting} is {value!r}; choose one of {', '.join(get_args(choices))}")
    if targets.shape == rows.shape[:-1]:
        targets = targets.unsqueeze(-1)
    if targets.shape[:-1] != rows.shape[:-1]:
        raise ValueError(
            f"targets {list(targets.shape)} do not belong to rows {list(rows.shape)}; "
            f"expected {list(rows.shape[:-1])}, with the bag as a last dimension if there is one"
        )
    if weights is not None and weights.shape != targets.shape[-1:]:
        raise ValueError(
            f"weights {list(weights.shape)} for bags of {targets.shape[-1]}; give one weight for each place"
        )
    return targets
