"""What accelerators do at most, and what they take: from their makers' data sheets.

FLOP/s are dense bfloat16 products with float32 sums, without sparsity; watts are the rated power of the board.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from superpose.errors import UserError
from superpose.train.hardware import matmul_peak

_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """
    Attributes:
        flops: FLOP/s at most.
        memory: bytes; 0 where it is not known.
        watts: rated power.
    """

    name: str
    flops: float
    memory: int
    watts: float


_KNOWN = {
    device.name.lower(): device
    for device in (
        Device("A100", 312e12, 80 * _GIB, 400),
        Device("H100", 989e12, 80 * _GIB, 700),
        Device("H200", 989e12, 141 * _GIB, 700),
        Device("B200", 2250e12, 180 * _GIB, 1000),
        Device("L40S", 362e12, 48 * _GIB, 350),
        Device("RTX4090", 165e12, 24 * _GIB, 450),
        Device("MI300X", 1307e12, 192 * _GIB, 750),
    )
}
NAMES = tuple(device.name for device in _KNOWN.values())


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind."""

    count: int
    device: Device

    def __str__(self) -> str:
        return f"{self.count} x {self.device.name}"


def parse_hardware(text: str) -> Hardware:
    """Reads "8xH100", "H100" or "cpu"; a CPU's speed is measured here, in float32.

    Raises:
        UserError: it is not known.
    """
    found = re.fullmatch(r"(?:(\d{1,6})\s*x\s*)?([\w-]+)", text.strip(), re.IGNORECASE)
    name = found[2].lower() if found else ""
    count = int(found[1] or 1) if found else 0
    if name == "cpu" and count == 1:
        peak = matmul_peak(torch.device("cpu"), "float32")
        return Hardware(1, Device("CPU", peak, 0, 8.0 * torch.get_num_threads()))
    if name not in _KNOWN or count < 1:
        raise UserError(
            f"--hardware {text}: expected a number of devices, such as 8xH100, of {', '.join(NAMES)}, or cpu"
        )
    return Hardware(count, _KNOWN[name])
