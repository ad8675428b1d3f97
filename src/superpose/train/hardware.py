"""What the machine does well, and how much of it a run uses: precision, utilisation, memory, energy."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from typing import Any

import torch

from superpose.train.config import Recipe, with_settings

# bfloat16 costs accuracy and casts; it is to be worth it.
_WORTH_IT = 1.2
# Watts of a processor core at work, where nothing measures them: server processors are rated at 3 to 12 a core.
_WATTS_PER_CORE = 8.0


def chosen_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with `train.precision` "auto" replaced by what multiplies matrices faster on this device."""
    if recipe.train.precision != "auto":
        return recipe
    # Small products in turns: a machine at work disturbs both alike, and the same command must choose the same again.
    bfloat16, float32 = _speeds(device, (torch.bfloat16, torch.float32), 8192 if device.type == "cuda" else 256, 20)
    return with_settings(recipe, "train", precision="bfloat16" if bfloat16 > _WORTH_IT * float32 else "float32")


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


class Energy:
    """Energy of this machine from now on, measured by codecarbon where that is installed.

    codecarbon reads the counters of processors and GPUs where the machine lets it. Without it, or where it finds no
    counter, the figure is an estimate from rated power and says so.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.perf_counter()
        self._tracker: Any = None
        try:
            from codecarbon import OfflineEmissionsTracker
        except ImportError:
            return
        # The country matters for emissions alone, which are not reported.
        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, log_level="critical", allow_multiple_runs=True
        )
        self._tracker.start()

    def close(self) -> None:
        """Ends the measurement, if `spent` has not."""
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None

    def spent(self) -> dict[str, Any]:
        """`kwh`, None where there is nothing to go by, in `hours`, and `how` it was found."""
        hours = (time.perf_counter() - self._started) / 3600
        if self._tracker is not None:
            tracker = self._tracker
            self.close()
            counters = str(tracker._hardware).lower()
            measured = self._device.type == "cuda" or any(name in counters for name in ("rapl", "powermetrics"))
            how = "measured" if measured else "estimated from load and rated power"
            return {"kwh": tracker.final_emissions_data.energy_consumed, "hours": hours, "how": how}
        if self._device.type != "cpu":
            return {"kwh": None, "hours": hours, "how": "unknown; install superpose[energy]"}
        cores = torch.get_num_threads()
        how = f"estimated: {cores} cores at {_WATTS_PER_CORE:.0f} W; superpose[energy] may measure it"
        return {"kwh": cores * _WATTS_PER_CORE * hours / 1000, "hours": hours, "how": how}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
