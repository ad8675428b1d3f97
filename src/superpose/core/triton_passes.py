"""The two passes over a chunk's logits as a Triton kernel each, for GPUs: `superpose.core.passes` has them in PyTorch.

A GPU is done with a chunk's logits when it has read them once for the loss, and read and written them once for their
gradient: both kernels wait for memory, and what is between takes no time of its own. So

- logits stay in the dtype of the products, where they are; arithmetic is float32, in registers;
- a program reads 16 bytes a thread and instruction: BLOCK entries are two such reads of half precision for each of 8
  warps of 32 threads, and eight such programs fill a multiprocessor's 2,048 threads, so that 64 KB are on their way
  at any time where 3 TB/s at 700 ns over 132 multiprocessors ask for 16 KB;
- a thread keeps a maximum and a sum of its own for each of its reads, which meet at the end of the row alone; an entry
  costs one exponential, and a read one more, by which a new maximum scales the old sum;
- no result depends on the order in which programs or threads arrive: nothing is added to memory, and a target that
  occurs twice is written twice with the same value.

Rows may have any distance in memory that is no less than their length; whole blocks of rows that begin at a multiple
of 16 bytes are read in vectors whatever V is, and only the last block of a row by single entries where V is odd.

Importing this takes as long as importing Triton, so that only `superpose.core.passes` does, for tensors on a GPU.

Shapes: n positions of a chunk, S targets of a position, V vocabulary (of this rank, where ranks share it).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Entries of a row that a program has in registers: 16 for each thread, below 64 registers with all that is done."""
NUM_WARPS = 8


def read_logits(
    logits: Tensor, bias: Tensor | None, softcap: float, places: Tensor, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `superpose.core.passes.read_logits`, but that the logits stay as they are, and the point is their maximum.

    Of bfloat16, float16 or float32; whatever `keep` says, nothing is kept.
    """
    positions, bag_size = places.shape
    picked = torch.empty(places.shape, dtype=dtype, device=logits.device)
    top, normalizer = picked.new_empty(2, positions, 1).unbind()
    if logits.shape[1] == 0:  # a shard of padding alone
        return picked.zero_(), top.fill_(-math.inf), normalizer.zero_()
    with torch.cuda.device_of(logits):
        _read[(positions,)](
            *(logits, logits if bias is None else bias, places.contiguous(), picked, top, normalizer),
            *(logits.stride(0), logits.shape[1], bag_size, softcap),
            **_constants(bias, softcap, bag_size),
            VECTOR=16 // logits.element_size(),
        )
    return picked, top, normalizer


def write_gradient(
    logits: Tensor,
    bias: Tensor | None,
    softcap: float,
    picked: Tensor,
    point: Tensor,
    factor: Tensor,
    places: Tensor,
    at_targets: Tensor,
) -> None:
    """As `superpose.core.passes.write_gradient`, with nothing left to multiply by."""
    positions, bag_size = places.shape
    blocks = triton.cdiv(logits.shape[1], BLOCK)
    if blocks == 0:
        return
    with torch.cuda.device_of(logits):
        _write[(positions * blocks,)](
            *(logits, logits if bias is None else bias, places.contiguous(), picked, at_targets.contiguous()),
            *(point.contiguous(), factor.contiguous()),
            *(logits.stride(0), logits.shape[1], bag_size, softcap, blocks),
            **_constants(bias, softcap, bag_size),
        )


def _constants(bias: Tensor | None, softcap: float, bag_size: int) -> dict[str, int | bool]:
    return {
        "HAS_BIAS": bias is not None,
        "HAS_CAP": softcap > 0,
        "TARGETS": triton.next_power_of_2(bag_size),
        "BLOCK": BLOCK,
        "num_warps": NUM_WARPS,
    }


@triton.jit
def _read(
    logits,
    bias,
    places,
    picked,
    top,
    normalizer,
    row_stride,
    vocab_size,
    bag_size,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A program a row."""
    row = tl.program_id(0).to(tl.int64)  # n x V may be beyond 32 bits
    logits += row * row_stride

    targets = tl.arange(0, TARGETS)
    there = targets < bag_size
    place = tl.load(places + row * bag_size + targets, mask=there, other=0)
    at_targets = _at(logits, bias, place, there, softcap, HAS_BIAS, HAS_CAP)
    tl.store(picked + row * bag_size + targets, at_targets, mask=there)

    # A thread's 16 bytes are a row of this block, so that their maximum and sum need no other thread.
    LOADS: tl.constexpr = BLOCK // VECTOR
    columns = tl.arange(0, LOADS)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    # The lowest number and not -inf, whose distance to a logit of -inf would not be a number.
    peak = tl.full([LOADS], -3.4028234663852886e38, tl.float32)
    total = tl.zeros([LOADS], tl.float32)
    whole = vocab_size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        value = _at(logits, bias, start + columns, None, softcap, HAS_BIAS, HAS_CAP)
        peak, total = _include(peak, total, value)
    if whole < vocab_size:
        inside = whole + columns < vocab_size
        value = _at(logits, bias, whole + columns, inside, softcap, HAS_BIAS, HAS_CAP)
        peak, total = _include(peak, total, tl.where(inside, value, -float("inf")))
    highest = tl.max(peak, 0)
    tl.store(top + row, highest)
    tl.store(normalizer + row, tl.sum(total * tl.exp(peak - highest), 0))


@triton.jit
def _write(
    logits,
    bias,
    places,
    picked,
    at_targets,
    point,
    factor,
    row_stride,
    vocab_size,
    bag_size,
    softcap,
    blocks,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program a block of a row: rows alone would leave multiprocessors without work at the end."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * BLOCK
    logits += row * row_stride
    origin, scale = tl.load(point + row), tl.load(factor + row)

    columns = start + tl.arange(0, BLOCK)
    if start + BLOCK <= vocab_size:
        value = _at(logits, bias, columns, None, softcap, HAS_BIAS, HAS_CAP)
        tl.store(logits + columns, _gradient(value, origin, scale, 0.0, softcap, HAS_CAP))
    else:
        inside = columns < vocab_size
        value = _at(logits, bias, columns, inside, softcap, HAS_BIAS, HAS_CAP)
        tl.store(logits + columns, _gradient(value, origin, scale, 0.0, softcap, HAS_CAP), mask=inside)

    targets = tl.arange(0, TARGETS)
    place = tl.load(places + row * bag_size + targets, mask=targets < bag_size, other=-1)
    here = (place >= start) & (place < start + BLOCK)
    at_place = tl.load(picked + row * bag_size + targets, mask=here, other=0)
    share = tl.load(at_targets + row * bag_size + targets, mask=here, other=0)
    tl.debug_barrier()  # these threads overwrite what others have written
    tl.store(logits + place, _gradient(at_place, origin, scale, share, softcap, HAS_CAP), mask=here)


@triton.jit
def _at(logits, bias, columns, mask, softcap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """A row's logits at columns, with bias and cap, in float32."""
    value = tl.load(logits + columns, mask=mask).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + columns, mask=mask).to(tl.float32)
    if HAS_CAP:
        value = softcap * _tanh(value / softcap)
    return value


@triton.jit
def _include(peak, total, values):
    """Maxima [n], and sums of exp(logit - maximum) [n], that take in values [n, k] as well."""
    higher = tl.maximum(peak, tl.max(values, 1))
    return higher, total * tl.exp(peak - higher) + tl.sum(tl.exp(values - higher[:, None]), 1)


@triton.jit
def _gradient(value, origin, scale, share, softcap, HAS_CAP: tl.constexpr):
    gradient = scale * tl.exp(value - origin) - share
    if HAS_CAP:
        bent = value / softcap
        gradient *= 1 - bent * bent
    return gradient


@triton.jit
def _tanh(x):
    """To float32's precision near 0 as well, where 1 - exp(-2 |x|) has lost its digits."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    decay = tl.exp(-2 * tl.abs(x))
    far = (1 - decay) / (1 + decay)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -far, far))
