"""What the machine does well, and how much of it a run uses: precision, utilisation, memory."""

import ctypes
import resource
import sys
import time
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

# bfloat16 costs accuracy and casts; it is to be worth it.
_WORTH_IT = 1.2


def faster_precision(device: torch.device) -> Precision:
    """What multiplies matrices faster on this device."""
    # Small products in turns: a machine at work disturbs both alike, and the same command must choose the same again.
    bfloat16, float32 = _speeds(device, (torch.bfloat16, torch.float32), 8192 if device.type == "cuda" else 256, 20)
    return "bfloat16" if bfloat16 > _WORTH_IT * float32 else "float32"


def matmul_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of square matrix products, the best of a few: what utilisation is measured against."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return _speeds(device, (dtype,), 8192 if device.type == "cuda" else 1024, 4)[0]


def _speeds(device: torch.device, dtypes: tuple[torch.dtype, ...], size: int, rounds: int) -> list[float]:
    """FLOP/s of matrix products [size, size] in each dtype, the best of some rounds of one product each."""
    pairs = [[torch.full((size, size), value, device=device, dtype=dtype) for value in (0.5, 0.25)] for dtype in dtypes]
    least = [float("inf")] * len(dtypes)
    for _ in range(rounds):
        for index, (left, right) in enumerate(pairs):
            _synchronize(device)
            started = time.perf_counter()
            left @ right
            _synchronize(device)
            least[index] = min(least[index], time.perf_counter() - started)
    return [2 * size**3 / seconds for seconds in least]


def peak_memory(device: torch.device) -> int:
    """Bytes of memory this process used at most so far: the device's own, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_memory() -> None:
    """Lets the process keep large blocks it frees, where its C library is glibc.

    Given back after each step, their pages would have to be cleared anew in the next: a tenth of a step's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
