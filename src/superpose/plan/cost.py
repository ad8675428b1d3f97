"""What a run takes: steps, tokens, FLOPs, hours, money, energy and CO2. Arithmetic, with its factors stated.

    hours  = FLOPs / (devices x FLOP/s at most x utilisation), or steps x measured seconds
    energy = devices x rated watts x hours x 1.25, for the rest of the machine and of the room

Ordinary training and TST of equal steps take the same, but for the text they read.
"""

from __future__ import annotations

from dataclasses import dataclass

from superpose.core.schedule import Schedule
from superpose.plan.hardware import Hardware

UTILISATION = 0.4
"""Model FLOPs utilisation where none is given: what well-tuned dense models reach; mixtures of experts less."""
OVERHEAD = 1.25
"""Energy of all that is not the accelerators, in units of theirs."""
CO2_GRAMS = 445.0
"""Per kWh: the world's mean in 2024 (IEA, Electricity 2025)."""


@dataclass(frozen=True)
class PhaseTokens:
    """What a phase reads."""

    phase: str
    bag_size: int
    steps: int
    raw_tokens: int


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        latents, raw_tokens, flops: of the whole run; `ordinary_tokens` are read by a run without superposition.
        epochs, ordinary_epochs: passes over the unique text; None if it is not known.
        hours: of wall-clock time on all devices together; None without hardware, as what follows.
        device_hours, price, kwh, kg_co2: of all devices. The price is in whatever currency an hour was given in.
    """

    steps: int
    latents: int
    raw_tokens: int
    ordinary_tokens: int
    phases: tuple[PhaseTokens, ...]
    flops: float
    epochs: float | None
    ordinary_epochs: float | None
    utilisation: float | None = None
    hours: float | None = None
    device_hours: float | None = None
    price: float | None = None
    kwh: float | None = None
    kg_co2: float | None = None


def cost_of(
    schedule: Schedule,
    latents_per_step: int,
    flops_per_latent: float,
    unique_tokens: float | None = None,
    hardware: Hardware | None = None,
    utilisation: float | None = None,
    price_per_hour: float | None = None,
    step_seconds: float | None = None,
    co2_grams: float = CO2_GRAMS,
) -> Cost:
    """
    Args:
        unique_tokens: raw tokens of the text there is.
        utilisation: share of the devices' FLOP/s that the model's FLOPs make up; `UTILISATION` if not given.
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
        return Cost(*common)
    at_most = hardware.count * hardware.device.flops
    if step_seconds is not None:
        hours = schedule.total_steps * step_seconds / 3600
        utilisation = flops / (hours * 3600 * at_most)
    else:
        utilisation = UTILISATION if utilisation is None else utilisation
        hours = flops / (at_most * utilisation) / 3600
    device_hours = hours * hardware.count
    kwh = device_hours * hardware.device.watts * OVERHEAD / 1000
    price = None if price_per_hour is None else device_hours * price_per_hour
    return Cost(*common, utilisation, hours, device_hours, price, kwh, kwh * co2_grams / 1000)
