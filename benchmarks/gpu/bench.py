"""What the parts share: the device, the clock, and how times and memory are taken on it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import interleaved

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bench:
    """Where and for how long.

    Args:
        device: a GPU, or the CPU to try the script out.
        small: shapes that a CPU computes in a second.
        ends: `time.monotonic()` at which all is over.
    """

    device: torch.device
    small: bool
    ends: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, arms: Mapping[str, Callable[[], object]], rounds: int = 5, calls: int = 3) -> dict[str, float]:
        """Least seconds of a call of each arm, in turns; `calls` in a row, so that launching them is not measured."""

        if self.small:
            rounds = calls = 1

        def run(call: Callable[[], object]) -> None:
            for _ in range(calls):
                call()
            self.wait()

        arms = {name: partial(run, call) for name, call in arms.items()}
        return {name: least / calls for name, least in interleaved(arms, rounds).items()}

    def peak_megabytes(self, call: Callable[[], object]) -> float | None:
        """What a call takes on the device above what was there before it; None on a CPU."""
        if self.device.type != "cuda":
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        self.wait()
        return round((torch.cuda.max_memory_allocated(self.device) - before) / 1e6, 1)

    def facts(self) -> dict[str, Any]:
        """What the figures depend on, with the two rates that bound them: measured, not from a data sheet."""
        import platform

        facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
        for name in ("triton", "transformers", "liger_kernel"):
            facts[name] = _version(name)
        if self.device.type == "cuda":
            card = torch.cuda.get_device_properties(self.device)
            facts |= {
                "card": card.name,
                "memory_gb": round(card.total_memory / 1e9, 1),
                "multiprocessors": card.multi_processor_count,
                "cuda": torch.version.cuda or torch.version.hip,
            }
        return facts | self.ceilings()

    def ceilings(self) -> dict[str, float]:
        """TFLOP/s of a bfloat16 product and TB/s, read and written, of a copy, on random numbers."""
        size = 256 if self.small else 8192
        a, b = torch.randn(2, size, size, device=self.device, dtype=torch.bfloat16).unbind()
        source = torch.randn(1 if self.small else 256, 2**20, device=self.device)
        target = torch.empty_like(source)
        least = self.seconds({"product": lambda: a @ b, "copy": lambda: target.copy_(source)})
        return {
            "product_tflops": round(2 * size**3 / least["product"] / 1e12, 3),
            "copy_tb_per_s": round(2 * source.nbytes / least["copy"] / 1e12, 3),
        }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
