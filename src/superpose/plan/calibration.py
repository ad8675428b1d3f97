"""Steps of both phases on the user's own machine, measured in place of estimated.

The run's own parts are timed: its model, optimizer and loss, and its store's windows. Nothing is written.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from superpose.core.schedule import Schedule
from superpose.data.store import TokenStore
from superpose.train.config import Recipe, chosen_precision
from superpose.train.distributed import joined_ranks
from superpose.train.hardware import keep_memory, peak_memory
from superpose.train.optim import learning_rate
from superpose.train.step import build_state, optimizer_step

_STEPS = 5
"""Of each phase, after one that does not count."""


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
        for stage in schedule.stages:
            nearest = min(self.step_seconds, key=lambda size: abs(size - stage.bag_size))
            total += stage.steps * self.step_seconds[nearest]
        return total / schedule.total_steps


def calibrate(recipe: Recipe, store: TokenStore) -> Calibration:
    """Runs a few steps of each of the recipe's stages.

    Raises:
        UserError: the recipe's model cannot be trained.
    """
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    with joined_ranks(recipe.parallel, recipe.train.device) as ranks:
        recipe = chosen_precision(recipe, ranks.device)
        if ranks.device.type == "cpu":
            keep_memory()
        state = build_state(recipe, store, ranks)
        plan = recipe.windows(store.train)
        steps: dict[int, float] = {}
        reading: dict[int, float] = {}
        for stage in recipe.schedule.stages:
            seconds, read = [], []
            for step in range(stage.start, min(stage.stop, stage.start + _STEPS + 1)):
                started = time.perf_counter()
                window = plan.read(store.train.tokens, step, ranks.rank, ranks.world_size)
                read.append(time.perf_counter() - started)
                window = window.to(ranks.device)
                started = time.perf_counter()
                lr = learning_rate(recipe.train, step, recipe.train.steps)
                # Reading a value makes the device finish.
                float(optimizer_step(state, recipe.train, stage, window, lr).loss)
                seconds.append(time.perf_counter() - started)
            steps[stage.bag_size] = statistics.median(seconds[1:] or seconds)
            reading[stage.bag_size] = statistics.median(read[1:] or read)
        return Calibration(steps, reading, peak_memory(ranks.device), recipe.train.precision)
