"""What is to be planned: a model, its steps and batch, and the devices it is for.

What devices do at most, what power they take, and what public runs reached on them is in devices.toml.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import torch

from superpose.core.schedule import Schedule
from superpose.errors import UserError
from superpose.plan.evidence import Setting
from superpose.train.hardware import Precision, matmul_peak
from superpose.train.optim import Optimizer

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
NAMES = tuple(_FIGURES["devices"])
_KNOWN = {
    name.lower(): Device(name, known["flops"], known["gib"] * 2**30, known["watts"])
    for name, known in _FIGURES["devices"].items()
}
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


CO2_GRAMS = 445.0
"""Per kWh: the world's mean in 2024 (IEA, Electricity 2025)."""


@dataclass(frozen=True)
class Price:
    """Of one device an hour, in some currency; "" where none was given."""

    amount: float
    currency: str = ""

    def __str__(self) -> str:
        return f"{self.amount:g} {self.currency}".strip()


@dataclass(frozen=True)
class Sharing:
    """How a model is spread over devices.

    Attributes:
        devices: all of them.
        shards: devices that a copy of weights, gradients and optimizer is spread over; 1 for DDP and a single device.
        gradients: whether gradients are spread between the parts of a step too (`parallel.shard_gradients`).
    """

    devices: int = 1
    shards: int = 1
    gradients: bool = True


@dataclass(frozen=True)
class Request:
    """
    Attributes:
        config: the model, as transformers has it.
        latents, rows, steps: L of a sequence, sequences of a step on all devices, steps of the run.
        unique_tokens: raw tokens of the text there is; None if it is not known.
        setting: bag size, ratio and weighting to take; None to have them recommended.
        utilisation: share of the devices' FLOP/s that the model's FLOPs make up; that of public runs if not given.
        price_per_hour: of one device.
        parts: into which a device's sequences of a step are split.
        precision: of matrix products; weights, gradients and optimizer are float32.
        sharing: of the model over the devices.
        device: "cpu", or anything else for a GPU.
        schedule: the run's own, if its stages are not told by `setting`; it counts wherever `setting` is taken.
        sources: tokens of each named source of the text, which stages with a mixture share out.
        unusual: what about the run has no evidence, in words ("continued pre-training").
        like: what the model's shape was taken from, in words.
    """

    config: Any
    latents: int
    rows: int
    steps: int
    unique_tokens: float | None = None
    setting: Setting | None = None
    hardware: Hardware | None = None
    utilisation: float | None = None
    price_per_hour: Price | None = None
    co2_grams: float = CO2_GRAMS
    parts: int = 1
    precision: Precision = "bfloat16"
    sharing: Sharing = Sharing()  # frozen
    optimizer: Optimizer = "adamw"
    checkpoint_activations: bool = False
    device: str = "cuda"
    schedule: Schedule | None = None
    sources: Mapping[str, int] = field(default_factory=dict)
    unusual: tuple[str, ...] = ()
    like: str = ""

    @property
    def latents_per_step(self) -> int:
        return self.rows * self.latents

    @property
    def extra_heads(self) -> int:
        """The most heads beside the model's own that a stage has; a setting that is recommended has none."""
        if self.schedule is None or self.setting is None:
            return 0
        return max(stage.extra_heads for stage in self.schedule.stages)
