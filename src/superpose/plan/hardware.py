"""What accelerators do at most, and what they take: from their makers' data sheets, or from the command line.

FLOP/s are dense bfloat16 products with float32 sums, without sparsity (float16 where there is no bfloat16); watts are
the rated power of the board.
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
        watts: rated power; 0 where it is not known.
    """

    name: str
    flops: float
    memory: int
    watts: float


_KNOWN = {
    device.name.lower(): device
    for device in (
        Device("A100", 312e12, 80 * _GIB, 400),  # NVIDIA A100 data sheet, SXM
        Device("A100-40", 312e12, 40 * _GIB, 400),  # the same
        Device("H100", 989e12, 80 * _GIB, 700),  # NVIDIA H100 data sheet, SXM
        Device("H800", 989e12, 80 * _GIB, 700),  # the H100 with slower links
        Device("H200", 989e12, 141 * _GIB, 700),  # NVIDIA H200 data sheet, SXM
        Device("B200", 2250e12, 180 * _GIB, 1000),  # NVIDIA HGX B200 data sheet, an eighth of it
        Device("B300", 2250e12, 270 * _GIB, 1400),  # NVIDIA HGX B300 data sheet, an eighth of it
        Device("L40S", 362e12, 48 * _GIB, 350),  # NVIDIA L40S data sheet
        Device("T4", 65e12, 16 * _GIB, 70),  # NVIDIA T4 data sheet, float16
        Device("RTX3090", 71e12, 24 * _GIB, 350),  # NVIDIA GA102 white paper, appendix A
        Device("RTX4090", 165e12, 24 * _GIB, 450),  # NVIDIA Ada white paper, appendix A
        Device("MI300X", 1307e12, 192 * _GIB, 750),  # AMD Instinct MI300X data sheet
        # Apple gives float32 FLOP/s of the GPU (newsroom: November 2020, October 2021, March 2022, June 2022); float16
        # is no faster. Memory is shared and sold in several sizes, so --memory says it.
        Device("M1", 2.6e12, 0, 20),
        Device("M1-Pro", 5.2e12, 0, 40),
        Device("M1-Max", 10.4e12, 0, 60),
        Device("M1-Ultra", 21e12, 0, 120),
        Device("M2", 3.6e12, 0, 20),
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


def parse_hardware(text: str, flops: float | None = None, memory: float | None = None) -> Hardware:
    """Reads "8xH100", "H100" or "cpu"; a CPU's speed is measured here, in float32.

    Args:
        flops, memory: FLOP/s at most and bytes of one device, in place of the known ones; a device that is not known
            needs its FLOP/s.

    Raises:
        UserError: it is not known.
    """
    found = re.fullmatch(r"(?:(\d{1,6})\s*x\s*)?([\w-]+)", text.strip(), re.IGNORECASE)
    name = found[2].lower() if found else ""
    count = int(found[1] or 1) if found else 0
    if name == "cpu" and count == 1:
        peak = matmul_peak(torch.device("cpu"), "float32") if flops is None else flops
        return Hardware(1, Device("CPU", peak, int(memory or 0), 8.0 * torch.get_num_threads()))
    device = _KNOWN.get(name)
    if device is None and flops is not None and found is not None:
        device = Device(found[2], flops, 0, 0)
    if device is None or count < 1 or name == "cpu":
        raise UserError(
            f"--hardware {text}: expected a number of devices, such as 8xH100, of {', '.join(NAMES)}, or cpu; of "
            f"another device give its speed too, such as --flops 400T --memory 48G"
        )
    own = Device(
        device.name,
        device.flops if flops is None else flops,
        device.memory if memory is None else int(memory),
        device.watts,
    )
    return Hardware(count, own)
