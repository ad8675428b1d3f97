"""The multi-hot cross-entropy: one softmax, S targets.

For logits z and a target bag y of S tokens (a multiset: duplicates count) with weights w_i >= 0::

    MCE(z, y) = logsumexp(z) - sum_i w_i z[y_i] / sum_i w_i            (arXiv 2605.06546, section 3.2)

It is the mean of S ordinary cross-entropies, so one logsumexp and one head product serve them all. At
initialisation it is about log V, never log(V) / S; its floor is the entropy of the target (log S for S
distinct tokens). At S = 1 it is `F.cross_entropy`.

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
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from superpose.core.fold import IGNORE_INDEX

Weighting = Literal["uniform", "power", "exponential", "first"]
Reduction = Literal["mean", "sum", "none"]

# Logits of a chunk of rows: 1 MiB in float32 stays in a core's cache between the passes over it; fewer than
# 128 rows make the matrix products inefficient whatever the vocabulary.
_CHUNK_LOGITS = 2**18
_MIN_CHUNK_ROWS = 128


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

    Returns:
        A scalar, or [...] for "none" (0 for rows without a valid target).

    Raises:
        ValueError: shapes that do not belong together, or an unknown reduction.
    """
    targets = _bagged(logits, targets, weights, reduction)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    shares = _shares(targets, weights, ignore_index, logits.dtype)
    picked = logits.gather(-1, targets.masked_fill(targets == ignore_index, 0))
    rows = logits.logsumexp(dim=-1) - (shares * picked).sum(dim=-1)
    rows = rows.masked_fill(shares.sum(dim=-1) == 0, 0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / count_rows(targets, weights, ignore_index).clamp(min=1)


def linear_multi_hot_cross_entropy(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """`multi_hot_cross_entropy(F.linear(hidden, lm_head_weight, bias), targets, ...)` without the N x V logits.

    Rows go through the head in chunks. While a chunk's logits are at hand its gradients are formed too, so the
    forward pass does all three matrix products and the backward pass only scales: nothing is computed twice
    and at most one chunk of logits exists. Loss and head gradient are accumulated in float32 (float64 for
    float64). Under autocast the products run in its dtype.

    Args:
        hidden: [..., D], the model's last hidden states.
        lm_head_weight: [V, D].
        targets: [..., S], or [...] for one target a row; ids of 0 to V - 1 or `ignore_index`.
        weights: [S], see `bag_weights`; uniform if not given.
        bias: [V] of the head, if it has one.
        ignore_index: marks targets that take no part.
        reduction: "mean" or "sum", see the normalisation above. "none" is differentiated by recomputing each
            chunk, since rows then meet different gradients.
        chunk_rows: rows at a time; by default 128, or as many as keep a chunk's logits within 1 MiB.

    Raises:
        ValueError: shapes that do not belong together, or an unknown reduction.
    """
    targets = _bagged(hidden, targets, weights, reduction)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, lm_head_weight = hidden.to(dtype), lm_head_weight.to(dtype)
    if not torch.is_grad_enabled():
        # The forward pass forms gradients for whatever asks for them, and cannot see that none will be taken.
        hidden, lm_head_weight, bias = hidden.detach(), lm_head_weight.detach(), None if bias is None else bias.detach()
    leading = hidden.shape[:-1]
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1, targets.shape[-1])
    chunk_rows = chunk_rows or max(_MIN_CHUNK_ROWS, _CHUNK_LOGITS // lm_head_weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        if reduction == "none":
            rows = [
                checkpoint(
                    _rows_of_chunk, chunk, lm_head_weight, bias, aims, weights, ignore_index, use_reentrant=False
                )
                for chunk, aims in zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True)
            ]
            return torch.cat(rows).reshape(leading)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        shares = _shares(targets, weights, ignore_index, wide)
        if reduction == "mean":
            divisor = count_rows(targets, weights, ignore_index).clamp(min=1)
        else:
            divisor = torch.ones((), dtype=torch.int64, device=targets.device)
        loss: Tensor = _LinearLoss.apply(
            hidden, lm_head_weight, bias, targets, shares, divisor, ignore_index, chunk_rows
        )
        return loss


def _rows_of_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None, ignore_index: int
) -> Tensor:
    bias = None if bias is None else bias.to(hidden.dtype)  # autocast is off here
    return multi_hot_cross_entropy(F.linear(hidden, weight, bias), targets, weights, ignore_index, "none")


class _LinearLoss(torch.autograd.Function):
    """Sum of rows / divisor, with gradients formed chunk by chunk in the forward pass.

    dMCE/dz = softmax(z) - sum_i share_i onehot(y_i), for rows with a valid target; 0 for the others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shares: Tensor,
        divisor: Tensor,
        ignore_index: int,
        chunk_rows: int,
    ) -> Tensor:
        wide = shares.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants_grad = wants_hidden or wants_weight or wants_bias
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wants_bias else None

        safe_targets = targets.masked_fill(targets == ignore_index, 0)
        counts = (shares > 0).any(dim=-1, keepdim=True).to(wide)  # 1, or 0 for a row without a valid target
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            logits = F.linear(hidden[rows], weight).to(wide)
            if bias is not None:
                logits += bias
            picked = logits.gather(-1, safe_targets[rows])
            # One exponential serves the logsumexp and, in place, the softmax of the gradient.
            top = logits.amax(dim=-1, keepdim=True)
            exponentials = logits.sub_(top).exp_()
            normalizer = exponentials.sum(dim=-1, keepdim=True)
            total += (counts[rows] * (top + normalizer.log())).sum() - (shares[rows] * picked).sum()
            if not wants_grad:
                continue
            grad_logits = exponentials.mul_(counts[rows] / (normalizer * divisor))
            grad_logits.scatter_add_(-1, safe_targets[rows], -shares[rows] / divisor)
            narrow = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                if grad_weight.dtype == weight.dtype:
                    grad_weight.addmm_(narrow.t(), hidden[rows])
                else:
                    grad_weight += narrow.t() @ hidden[rows]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total / divisor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if grad_hidden is None else (grad_hidden * grad_output).to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_output).to(weight_dtype),
            None if grad_bias is None else (grad_bias * grad_output).to(bias_dtype),
            *(None,) * 5,
        )


def _shares(targets: Tensor, weights: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Each target's share of its row's loss [N, S]: 0 where ignored; a row sums to 1, or 0 if none is valid."""
    valid = (targets != ignore_index).to(dtype)
    weighted = valid if weights is None else valid * weights.to(targets.device, dtype)
    mass = weighted.sum(dim=-1, keepdim=True)
    return weighted / mass.masked_fill(mass == 0, 1)


def _bagged(rows: Tensor, targets: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """Targets as [..., S], after checking that everything belongs together."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(get_args(Reduction))}")
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
