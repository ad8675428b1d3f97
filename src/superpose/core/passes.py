"""The passes over a chunk's logits that stand between the head's products, one before its losses and one after.

    read_logits      logits z, capped: those at the targets, a point m near the maximum, the sum of exp(z - m)
    write_gradient   in place of the logits: factor * exp(z - m), less the shares of the targets

What lies between them is arithmetic on n numbers (`superpose.core.sweep`). This is the plain form. It goes over
the logits once, in blocks that a core's own cache holds, and leaves their exponentials in their place, so that
`write_gradient` has the targets' columns to write and nothing else: what all of a row is still to be multiplied by, it
returns, and multiplying the hidden states by it costs D numbers a position where the logits are V. On a GPU
`superpose.core.triton_passes` takes its place.

Shapes: n positions of a chunk, S targets of a position, V vocabulary.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 2**18
"""Numbers of a block: 1 MiB in float32, half of what the cache of a core holds; for each thread."""
_SAFE = 30.0
"""exp(z) of logits whose maximum is between this and its negative needs no shift: their sum is far from both ends of
float32's range (1e-38 to 1e38), and so is what is 1e-7 of it."""


def read_logits(
    logits: Tensor,
    bias: Tensor | None,
    softcap: float,
    places: Tensor,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Capped logits at the targets [n, S], a point of each row [n, 1] and the sum of exp(logits - point) [n, 1].

    Args:
        logits: [n, V] as the product left them; they are overwritten.
        bias: [V], added to the logits.
        softcap: logits are softcap * tanh(logits / softcap); 0 for none.
        places: [n, S], columns of the targets.
        dtype: of all sums and results.
        keep: whether `write_gradient` follows.
    """
    narrow = logits.dtype != dtype
    picked = places.new_zeros(places.shape, dtype=dtype)
    point = places.new_full((len(places), 1), -math.inf, dtype=dtype)
    total = torch.zeros_like(point)
    room = None
    for rows in blocks(logits):
        block = logits[rows]
        if narrow:
            room = torch.empty_like(block, dtype=dtype) if room is None else room
            block = room[: len(block)].copy_(block)
        if bias is not None:
            block += bias
        slope = None
        if softcap:
            block.div_(softcap).tanh_()
            slope = 1 - block.square() if keep else None
            block.mul_(softcap)
        torch.gather(block, -1, places[rows], out=picked[rows])
        top = torch.amax(block, -1, keepdim=True, out=point[rows])
        if block.is_cpu and top.abs().max() <= _SAFE:
            top.zero_()
        else:
            block -= top
        normalizer = torch.sum(block.exp_(), -1, keepdim=True, out=total[rows])
        if slope is not None:
            block *= slope
        if narrow and keep:
            # Half precision keeps probabilities: what is rounded once is then multiplied by nothing.
            logits[rows] = block.mul_(normalizer.reciprocal())
    if narrow:
        return picked, point + total.log(), torch.ones_like(total)
    return picked, point, total


def write_gradient(
    logits: Tensor,
    bias: Tensor | None,
    softcap: float,
    picked: Tensor,
    point: Tensor,
    factor: Tensor,
    places: Tensor,
    at_targets: Tensor,
) -> Tensor | None:
    """logits <- (factor * exp(logits - point) - at_targets at the targets) * slope of the cap, less a multiplier.

    Args:
        logits, bias, softcap, places: as `read_logits` had them and left them.
        picked, point: that it returned.
        factor: [n, 1].
        at_targets: [n, S], the same for targets that are the same token: each is the whole of what is taken off
            there, so the order in which they are written is of no matter. 0 where the factor is.

    Returns:
        [n, 1] that the rows are still to be multiplied by; None for 1.
    """
    if logits.shape[1] == 0:
        return None
    gradient = (picked - point).exp_() - torch.where(factor == 0, 0, at_targets / factor)
    if softcap:
        gradient *= 1 - (picked / softcap).square()
    # A CPU's scatter_ copies all of a tensor in half precision to float32 and back.
    apart = logits.stride(0)
    numbers = logits.as_strided(((len(logits) - 1) * apart + logits.shape[1],), (1,))
    rows = torch.arange(len(logits), device=logits.device).unsqueeze(-1) * apart
    numbers.index_copy_(0, (places + rows).view(-1), gradient.to(logits.dtype).view(-1))
    return None if factor.is_cpu and (factor == 1).all() else factor


def blocks(logits: Tensor) -> Iterator[slice]:
    """The rows of each block; off a CPU all are one."""
    rows, vocab_size = logits.shape
    if vocab_size == 0:
        return
    size = max(1, _BLOCK * torch.get_num_threads() // vocab_size) if logits.is_cpu else rows
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


class Passes(NamedTuple):
    """A form of the passes: functions with the contracts of this module's two."""

    read_logits: Callable[..., tuple[Tensor, Tensor, Tensor]]
    write_gradient: Callable[..., Tensor | None]


PLAIN = Passes(read_logits, write_gradient)


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

    return Passes(fused.read_logits, fused.write_gradient)
