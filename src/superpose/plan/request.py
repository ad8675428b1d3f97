"""What is to be planned: a model, its steps and batch, and the devices it is for."""

from dataclasses import dataclass
from typing import Any

from superpose.plan.evidence import Setting
from superpose.plan.hardware import Hardware
from superpose.train.hardware import Precision
from superpose.train.optim import Optimizer

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
    """

    devices: int = 1
    shards: int = 1


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        config: the model, as transformers has it.
        latents, rows, steps: L of a sequence, sequences of a step on all devices, steps of the run.
        unique_tokens: raw tokens of the text there is; None if it is not known.
        setting: bag size, ratio and weighting to take; None to have them recommended.
        utilisation: share of the devices' FLOP/s that the model's FLOPs make up; that of public runs if not given.
        price_per_hour: of one device.
        parts: into which a device's sequences of a step are split.
        precision: of matrix products; weights, gradients and optimizer are float32.
        sharing: of the model over the devices; also says how many they are.
        device: "cpu", or anything else for a GPU.
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
    unusual: tuple[str, ...] = ()
    like: str = ""

    @property
    def latents_per_step(self) -> int:
        return self.rows * self.latents
