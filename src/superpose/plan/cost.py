"""What a run takes: steps, tokens, FLOPs, hours, money, energy and CO2. Arithmetic, with its factors stated.

    hours  = FLOPs / (devices x FLOP/s at most x utilisation), or steps x measured seconds
    energy = devices x rated watts x hours x 1.25, for the rest of the machine and of the room

Nobody knows the utilisation of a run before it has begun, so hours are a range, from what public runs reached.
Ordinary training and TST of equal steps take the same, but for the text they read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from superpose.core.schedule import Schedule
from superpose.plan.hardware import Range, usual_utilisation
from superpose.plan.request import Request

OVERHEAD = 1.25
"""Energy of all that is not the accelerators, in units of theirs."""


@dataclass(frozen=True)
class PhaseTokens:
    """What a phase reads."""

    phase: str
    bag_size: int
    steps: int
    raw_tokens: int


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
    request: Request, schedule: Schedule, flops_per_latent: float, step_seconds: float | None = None
) -> RunCost:
    """What a request's run takes by a schedule; `step_seconds` were measured, and count in place of a utilisation."""
    steps, per_step, text = schedule.total_steps, request.latents_per_step, request.unique_tokens
    latents, raw_tokens = steps * per_step, schedule.raw_tokens(per_step)
    phases = tuple(
        PhaseTokens(stage.phase, stage.bag_size, stage.steps, stage.steps * stage.raw_tokens_per_latent * per_step)
        for stage in schedule.stages
    )
    flops = float(latents) * flops_per_latent
    epochs, ordinary_epochs = (tokens / text if text else None for tokens in (raw_tokens, latents))
    cost = RunCost(steps, latents, raw_tokens, latents, phases, flops, epochs, ordinary_epochs)
    hardware, given = request.hardware, request.utilisation
    if hardware is None:
        return cost
    at_most = hardware.count * hardware.device.flops
    if step_seconds is not None:
        hours = (steps * step_seconds / 3600,) * 2
        used = (flops / (hours[0] * 3600 * at_most),) * 2
    else:
        used = usual_utilisation(hardware.device.name) if given is None else (given, given)
        hours = (flops / (at_most * used[1]) / 3600, flops / (at_most * used[0]) / 3600)

    def times(factor: float) -> Range:
        return hours[0] * hardware.count * factor, hours[1] * hardware.count * factor

    price, energy = request.price_per_hour, hardware.device.watts * OVERHEAD / 1000
    return replace(
        cost,
        utilisation=used,
        hours=hours,
        device_hours=times(1),
        price=times(price.amount) if price else None,
        kwh=times(energy) if energy else None,
        kg_co2=times(energy * request.co2_grams / 1000) if energy else None,
    )
