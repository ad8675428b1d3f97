"""The two passes over a block of logits that stand between the head's products: one reads them, one writes gradients.

    read_logits      logits z, capped: those at the targets, the maximum m and the sum of exp(z - m)
    write_gradient   in place of the logits: factor * exp(z - m), less the shares of the targets

What lies between them is arithmetic on n numbers (`superpose.core.multi_hot_op`). This is the plain form: it keeps the
exponentials that it has read, so that value and gradient cost one exp. On a GPU, where memory is what takes time,
`superpose.core.triton_passes` keeps nothing.

Shapes: n positions of a block, S targets of a position, V vocabulary.
"""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def work_for(logits: Tensor, dtype: torch.dtype, softcap: float) -> list[Tensor]:
    """Room for what `read_logits` leaves to `write_gradient`: exponentials, and the slopes of a cap, each [n, V].

    Logits that are already in the dtype of the sums give their own room to the exponentials.
    """
    exponentials = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
    return [exponentials, torch.empty_like(exponentials)] if softcap else [exponentials]


def read_logits(
    logits: Tensor, work: list[Tensor], bias: Tensor | None, softcap: float, places: Tensor, owned: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Capped logits at the targets [n, S], their maxima [n, 1] and the sums of exp(logits - maximum) [n, 1].

    Args:
        logits: [n, V] as the product left them.
        work: of `work_for`, whose dtype is that of all sums and results.
        bias: [V], added to the logits.
        softcap: logits are softcap * tanh(logits / softcap); 0 for none.
        places: [n, S], columns of the targets.
        owned: [n, S], False for targets that are no columns of these logits, which then give 0; None if all are.
    """
    exponentials = work[0]
    if logits.dtype != exponentials.dtype:
        exponentials.copy_(logits)
    if bias is not None:
        exponentials += bias
    if softcap:
        exponentials.div_(softcap).tanh_()
        torch.mul(exponentials, exponentials, out=work[1])
        exponentials.mul_(softcap)
    if logits.shape[1] == 0:  # a shard of padding alone
        top = exponentials.new_full((len(logits), 1), -math.inf)
        return exponentials.new_zeros(places.shape), top, exponentials.sum(-1, keepdim=True)
    picked, top = exponentials.gather(-1, places), exponentials.amax(-1, keepdim=True)
    normalizer = exponentials.sub_(top).exp_().sum(-1, keepdim=True)
    return picked if owned is None else picked.masked_fill_(~owned, 0), top, normalizer


def write_gradient(
    logits: Tensor,
    work: list[Tensor],
    bias: Tensor | None,
    softcap: float,
    top: Tensor,
    factor: Tensor,
    places: Tensor,
    at_targets: Tensor,
) -> None:
    """logits <- (factor * exp(logits - top) - at_targets at the targets) * slope of the cap, rounded once.

    Args:
        logits, work, bias, softcap, places: as `read_logits` had and left them.
        top: [n, 1] that `read_logits` returned.
        factor: [n, 1].
        at_targets: [n, S], the same for targets that are the same token: each is the whole of what is taken off
            there, so the order in which they are written is of no matter.
    """
    exponentials = work[0]
    if logits.shape[1] == 0:
        return
    at_targets = exponentials.gather(-1, places) * factor - at_targets
    if softcap:
        exponentials.mul_(factor).scatter_(-1, places, at_targets)
        # exponentials - exponentials * tanh^2
        torch.addcmul(exponentials, exponentials, work[1], value=-1, out=exponentials)
        if logits.dtype != exponentials.dtype:
            logits.copy_(exponentials)
        return
    torch.mul(exponentials, factor, out=logits)
    logits.scatter_(-1, places, at_targets.to(logits.dtype))


class Passes(NamedTuple):
    """A form of the passes: three functions with the contracts of this module's."""

    work_for: Callable[..., list[Tensor]]
    read_logits: Callable[..., tuple[Tensor, Tensor, Tensor]]
    write_gradient: Callable[..., None]


PLAIN = Passes(work_for, read_logits, write_gradient)


def passes_for(logits: Tensor) -> Passes:
    """The form for these logits: Triton's kernels on a GPU, whose PyTorch brings Triton along; else the plain one.

    Of logits in float64 too, whose precision the kernels do not have.
    """
    return _fused() if logits.is_cuda and logits.dtype != torch.float64 else PLAIN


@functools.cache
def _fused() -> Passes:
    if importlib.util.find_spec("triton") is None:
        return PLAIN
    from superpose.core import triton_passes as fused

    return Passes(fused.work_for, fused.read_logits, fused.write_gradient)
