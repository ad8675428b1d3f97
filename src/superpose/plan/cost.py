"""What a run takes: steps, tokens, FLOPs, hours, money, energy and CO2. Arithmetic, with its factors stated.

    hours  = FLOPs / (devices x FLOP/s at most x utilisation), or steps x measured seconds
    energy = devices x rated watts x hours x 1.25, for the rest of the machine and of the room

Nobody knows the utilisation of a run before it has begun, so hours are a range, from what public runs reached.
Ordinary training and TST of equal steps take the same, but for the text they read.
"""

from __future__ import annotations

from dataclasses import dataclass

from superpose.core.schedule import Schedule
from superpose.plan.hardware import Hardware


@dataclass(frozen=True)
class PublicRun:
    """A run that was published with its hours.

    Attributes:
        utilisation: share of the devices' FLOP/s that the model's FLOPs make up, counted as this plan counts them.
    """

    name: str
    device: str
    utilisation: float
    source: str


PUBLIC_RUNS = (
    PublicRun("Llama 3 8B", "H100", 0.19, "its model card: 1.3M hours for 15T tokens"),
    PublicRun("SmolLM3 3B", "H100", 0.294, "as reported: 14k tokens a second and device on 384 devices"),
    PublicRun("Llama 3 405B", "H100", 0.43, "arXiv 2407.21783, table 4: 0.38 to 0.43"),
    PublicRun("nanoGPT 124M", "A100", 0.29, "its README: 4 days on 8 devices for 295B tokens"),
    PublicRun("llm.c GPT-2 124M", "A100", 0.63, "its discussion 481: 90 minutes on 8 devices for 10B tokens"),
    PublicRun("SmolLM2-70M", "L40S", 0.49, "the card of codelion/SmolLM2-70M: 25.8 hours for 10.2B tokens"),
)
_MARGIN = 1.25
"""By which a run of another shape and length of rows may lie outside of the public ones."""
OVERHEAD = 1.25
"""Energy of all that is not the accelerators, in units of theirs."""
CO2_GRAMS = 445.0
"""Per kWh: the world's mean in 2024 (IEA, Electricity 2025)."""

Range = tuple[float, float]


def usual_utilisation(device: str) -> Range:
    """From the lowest to the highest of the public runs on a device, or of all where it has fewer than two."""
    known = [run.utilisation for run in PUBLIC_RUNS if run.device == device]
    known = known if len(known) > 1 else [run.utilisation for run in PUBLIC_RUNS]
    return min(known) / _MARGIN, min(1.0, max(known) * _MARGIN)


@dataclass(frozen=True)
class PhaseTokens:
    """What a phase reads."""

    phase: str
    bag_size: int
    steps: int
    raw_tokens: int


@dataclass(frozen=True)
class Price:
    """Of one device an hour, in some currency; "" where none was given."""

    amount: float
    currency: str = ""

    def __str__(self) -> str:
        return f"{self.amount:g} {self.currency}".strip()


@dataclass(frozen=True)
class RunCost:
    """
    Attributes:
        latents, raw_tokens, flops: of the whole run; `ordinary_tokens` are read by a run without superposition.
        epochs, ordinary_epochs: passes over the unique text; None if it is not known.
        utilisation, hours: lowest and highest; equal where it was given or measured. Hours are wall-clock time on all
            devices together. None without hardware, as what follows.
        device_hours, price, kwh, kg_co2: of all devices, lowest and highest. Energy is None where no power is known.
    """

    steps: int
    latents: int
    raw_tokens: int
    ordinary_tokens: int
    phases: tuple[PhaseTokens, ...]
    flops: float
    epochs: float | None
    ordinary_epochs: float | None
    utilisation: Range | None = None
    hours: Range | None = None
    device_hours: Range | None = None
    price: Range | None = None
    kwh: Range | None = None
    kg_co2: Range | None = None


def cost_of(
    schedule: Schedule,
    latents_per_step: int,
    flops_per_latent: float,
    unique_tokens: float | None = None,
    hardware: Hardware | None = None,
    utilisation: float | None = None,
    price_per_hour: Price | None = None,
    step_seconds: float | None = None,
    co2_grams: float = CO2_GRAMS,
) -> RunCost:
    """
    Args:
        unique_tokens: raw tokens of the text there is.
        utilisation: share of the devices' FLOP/s that the model's FLOPs make up; that of public runs if not given.
        price_per_hour: of one device.
        step_seconds: measured; in place of a utilisation.
    """
    latents = schedule.total_steps * latents_per_step
    raw_tokens = schedule.raw_tokens(latents_per_step)
    flops = float(latents) * flops_per_latent
    phases = tuple(
        PhaseTokens(
            stage.phase, stage.bag_size, stage.steps, stage.steps * stage.raw_tokens_per_latent * latents_per_step
        )
        for stage in schedule.stages
    )
    epochs, ordinary_epochs = (tokens / unique_tokens if unique_tokens else None for tokens in (raw_tokens, latents))
    common = (schedule.total_steps, latents, raw_tokens, latents, phases, flops, epochs, ordinary_epochs)
    if hardware is None:
        return RunCost(*common)
    at_most = hardware.count * hardware.device.flops
    if step_seconds is not None:
        hours = (schedule.total_steps * step_seconds / 3600,) * 2
        used = (flops / (hours[0] * 3600 * at_most),) * 2
    else:
        used = usual_utilisation(hardware.device.name) if utilisation is None else (utilisation, utilisation)
        hours = (flops / (at_most * used[1]) / 3600, flops / (at_most * used[0]) / 3600)

    def times(factor: float) -> Range:
        return hours[0] * hardware.count * factor, hours[1] * hardware.count * factor

    energy = hardware.device.watts * OVERHEAD / 1000
    return RunCost(
        *common,
        used,
        hours,
        times(1),
        None if price_per_hour is None else times(price_per_hour.amount),
        times(energy) if energy else None,
        times(energy * co2_grams / 1000) if energy else None,
    )
