"""What accelerators do at most, what they take, and what public runs reached, out of devices.toml."""

import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files

import torch

from superpose.errors import UserError
from superpose.train.hardware import matmul_peak

_MARGIN = 1.25
"""By which a run of another shape and length of rows may lie outside of the public ones."""

Range = tuple[float, float]
"""Lowest and highest."""


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


@dataclass(frozen=True)
class PublicRun:
    """A run that was published with its hours; `utilisation` is the share of the devices' FLOP/s it made use of."""

    name: str
    device: str
    utilisation: float
    source: str


_FIGURES = tomllib.loads(files("superpose.plan").joinpath("devices.toml").read_text("utf-8"))
_KNOWN = {
    name.lower(): Device(name, device["flops"], device["gib"] * 2**30, device["watts"])
    for name, device in _FIGURES["devices"].items()
}
NAMES = tuple(_FIGURES["devices"])
PUBLIC_RUNS = tuple(PublicRun(**run) for run in _FIGURES["public_runs"])


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind."""

    count: int
    device: Device

    def __str__(self) -> str:
        return f"{self.count} x {self.device.name}"


def runs_on(device: str) -> list[PublicRun]:
    """The public runs on a device, or all where it has fewer than two."""
    known = [run for run in PUBLIC_RUNS if run.device == device]
    return known if len(known) > 1 else [*PUBLIC_RUNS]


def usual_utilisation(device: str) -> Range:
    """From the lowest to the highest of the public runs on a device, and a quarter beyond."""
    known = [run.utilisation for run in runs_on(device)]
    return min(known) / _MARGIN, min(1.0, max(known) * _MARGIN)


def parse_hardware(text: str, flops: float | None = None, memory: float | None = None) -> Hardware:
    """Reads "8xH100", "H100" or "cpu"; a CPU's speed is measured here, in float32.

    Args:
        flops, memory: FLOP/s at most and bytes of one device, in place of the known ones; a device that is not known
            needs its FLOP/s.

    Raises:
        UserError: it is not known.
    """
    found = re.fullmatch(r"(?:(\d{1,6})\s*x\s*)?([\w-]+)", text.strip(), re.IGNORECASE)
    name, count = (found[2], int(found[1] or 1)) if found else ("", 0)
    device = _KNOWN.get(name.lower())
    if name.lower() == "cpu":
        count = count if count == 1 else 0
        peak = matmul_peak(torch.device("cpu"), "float32") if flops is None and count else 0.0
        device = Device("CPU", peak, 0, 8.0 * torch.get_num_threads())
    elif device is None and flops is not None:
        device = Device(name, flops, 0, 0)
    if device is None or count < 1:
        raise UserError(
            f"--hardware {text}: expected a number of devices, such as 8xH100, of {', '.join(NAMES)}, or cpu; of "
            f"another device give its speed too, such as --flops 400T --memory 48G"
        )
    own = flops if flops is not None else device.flops, int(memory) if memory is not None else device.memory
    return Hardware(count, Device(device.name, *own, device.watts))
