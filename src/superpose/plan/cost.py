"""What a run takes: steps, tokens, FLOPs, hours, money, energy and CO2. Arithmetic, with its factors stated.

    hours  = FLOPs / (devices x FLOP/s at most x utilisation), or steps x measured seconds
    energy = devices x rated watts x hours x 1.25, for the rest of the machine and of the room

Nobody knows the utilisation of a run before it has begun, so hours are a range, from what public runs reached, unless
steps are measured on the user's own machine. Then the run's own parts are timed: its model, optimizer and loss, and its
store's windows. Ordinary training and TST of equal steps take the same, but for the text they read.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from superpose.core.schedule import Schedule
from superpose.data.sources import NamedSource
from superpose.data.store import TokenStore
from superpose.data.windows import WindowPlan
from superpose.plan.request import Range, Request, usual_utilisation
from superpose.train.config import Recipe
from superpose.train.distributed import joined_ranks
from superpose.train.hardware import keep_memory, peak_memory
from superpose.train.optim import learning_rate
from superpose.train.recipe_file import chosen_precision
from superpose.train.step import build_state, optimizer_step

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
        source_epochs: passes over each named source, where stages share them out and their sizes are known.
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
    source_epochs: Mapping[str, float] = field(default_factory=dict)


def cost_of(
    request: Request,
    schedule: Schedule,
    flops_per_latent: float,
    step_seconds: float | None = None,
    flops_per_head: float = 0,
) -> RunCost:
    """What a request's run takes by a schedule.

    Args:
        flops_per_latent: of the model.
        step_seconds: measured; they count in place of a utilisation.
        flops_per_head: of a latent in one extra head.
    """
    steps, per_step, text = schedule.total_steps, request.latents_per_step, request.unique_tokens
    latents, raw_tokens = steps * per_step, schedule.raw_tokens(per_step)
    phases = tuple(
        PhaseTokens(stage.phase, stage.largest, count, int(count * stage.raw_tokens_per_position * per_step))
        for stage, count in schedule.counts()
    )
    heads = sum(stage.steps * per_step * stage.extra_heads for stage in schedule.stages)
    flops = float(latents) * flops_per_latent + heads * flops_per_head
    epochs, ordinary_epochs = (tokens / text if text else None for tokens in (raw_tokens, latents))
    by_source = passes_by_source(request, schedule)
    cost = RunCost(steps, latents, raw_tokens, latents, phases, flops, epochs, ordinary_epochs, source_epochs=by_source)
    hardware, given = request.hardware, request.utilisation
    if hardware is None:
        return cost
    at_most = hardware.count * hardware.device.flops
    if step_seconds is not None:
        given = flops / (steps * step_seconds * at_most)
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


def passes_by_source(request: Request, schedule: Schedule) -> dict[str, float]:
    """How often each named source is read, as a run counts it; nothing where no stage has a mixture.

    Raises:
        UserError: a stage shares out what is no source, or a source is shorter than a step reads of it.
    """
    if not request.sources or not schedule.mixes:
        return {}
    # A source counts by its tokens, so one document of as many stands for it.
    sources = {
        name: NamedSource(np.zeros(1, np.int64), np.array([0, tokens]), 0) for name, tokens in request.sources.items()
    }
    whole = sum(request.sources.values())
    return WindowPlan(schedule, request.rows, request.latents, whole, seed=0, sources=sources).source_epochs


@dataclass(frozen=True)
class Calibration:
    """
    Attributes:
        step_seconds: median of a step, by bag size.
        reading_seconds: median of reading its windows, by bag size.
        memory: bytes at most, of the device, or of the process on a CPU; without checkpoints.
        precision: that was measured with.
    """

    step_seconds: dict[int, float]
    reading_seconds: dict[int, float]
    memory: int
    precision: str

    def mean_step(self, schedule: Schedule) -> float:
        """Seconds of a step of a schedule, on average; of a bag size that was not measured, those of the nearest."""
        total = 0.0
        for stage, count in schedule.counts():
            nearest = min(self.step_seconds, key=lambda size: abs(size - stage.largest))
            total += count * self.step_seconds[nearest]
        return total / schedule.total_steps


def calibrate(recipe: Recipe, store: TokenStore) -> Calibration:
    """Runs a few steps of each of the recipe's stages, at each of their bag sizes; nothing is written.

    Raises:
        UserError: the recipe's model cannot be trained.
    """
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    with joined_ranks(recipe.parallel, recipe.train.device) as ranks:
        recipe = chosen_precision(recipe, ranks.device)
        if ranks.device.type == "cpu":
            keep_memory()
        state, plan = build_state(recipe, store, ranks), recipe.windows(store.train)
        steps, reading = dict[int, float](), dict[int, float]()
        alike = [steps_at for stage in plan.schedule.stages for steps_at in plan.schedule.steps_at(stage).items()]
        for bag_size, numbers in alike:
            seconds, read = [], []
            # One more than is measured: the first does not count.
            for step in numbers[:6]:
                started = time.perf_counter()
                window = plan.read(store.train.tokens, step, ranks.rank, ranks.world_size)
                read.append(time.perf_counter() - started)
                window = window.to(ranks.device)
                started = time.perf_counter()
                lr = learning_rate(recipe.train, step, recipe.train.steps)
                # Reading a value makes the device finish.
                float(optimizer_step(state, recipe.train, plan.schedule.step_at(step), window, lr).loss)
                seconds.append(time.perf_counter() - started)
            if seconds:
                steps[bag_size] = statistics.median(seconds[1:] or seconds)
                reading[bag_size] = statistics.median(read[1:] or read)
        return Calibration(steps, reading, peak_memory(ranks.device), recipe.train.precision)
