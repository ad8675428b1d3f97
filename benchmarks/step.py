"""What a superposition step costs beside a recovery step, and what reading its window takes, in the demo's setting.

    python benchmarks/step.py

Steps of all bag sizes are interleaved in one process on one thread; figures are medians. `read` is the share of a
step that goes into fetching its window from the store.
"""

from __future__ import annotations

import statistics
import time

import torch

from superpose.data.config import prepare
from superpose.data.windows import WindowPlan
from superpose.train.config import Recipe, load_recipe
from superpose.train.loop import Trainee, build_trainee, optimizer_step

BAG_SIZES = (1, 4, 8, 16)
ROUNDS = 15


def main() -> None:
    torch.set_num_threads(1)
    store = prepare(Recipe().data)
    tokens = store.train.tokens
    settings: dict[int, tuple[Recipe, Trainee, WindowPlan]] = {}
    for bag_size in BAG_SIZES:
        recipe = load_recipe(
            None, [f"superposition.bag_size={bag_size}", "superposition.ratio=1.0", "train.steps=1000"]
        )
        plan = WindowPlan(recipe.schedule, recipe.train.batch_size, recipe.train.latents, len(tokens), seed=1)
        settings[bag_size] = recipe, build_trainee(recipe, store), plan
    steps: dict[int, list[float]] = {bag_size: [] for bag_size in BAG_SIZES}
    reads: dict[int, list[float]] = {bag_size: [] for bag_size in BAG_SIZES}
    for number in range(ROUNDS + 2):
        for bag_size, (recipe, trainee, plan) in settings.items():
            started = time.perf_counter()
            plan.read(tokens, number)
            read = time.perf_counter()
            optimizer_step(trainee, plan, store, recipe, recipe.schedule.stage_at(number), number, lr=1e-3)
            stopped = time.perf_counter()
            if number >= 2:
                reads[bag_size].append(read - started)
                steps[bag_size].append(stopped - read)
    ordinary = statistics.median(steps[1])
    print("bag size   step, ms   against bag size 1   read")
    for bag_size in BAG_SIZES:
        step, read = statistics.median(steps[bag_size]), statistics.median(reads[bag_size])
        print(f"{bag_size:8}   {1e3 * step:8.1f}   {step / ordinary:18.3f}   {read / step:.2%}")


if __name__ == "__main__":
    main()
