"""What a superposition step costs beside a recovery step, and what reading its window takes, in the demo's setting.

    python benchmarks/step.py
    python benchmarks/step.py data.vocab_size=16384 model.config.hidden_size=256 model.config.intermediate_size=768 \\
        model.config.num_hidden_layers=4 train.batch_size=4 train.latents=256

The second is a larger model: arguments are settings of the recipe. Bag sizes are interleaved in one process on one
thread; figures are medians. `read` is how long fetching a step's window from the store takes, as a share of the step;
`wait` is what is left of that when it is read ahead on a thread, as training does.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial

import torch

from superpose.data.config import prepare
from superpose.data.loader import read_ahead
from superpose.data.windows import WindowPlan
from superpose.train.config import Recipe, load_recipe
from superpose.train.distributed import Ranks
from superpose.train.step import TrainState, build_state, optimizer_step

BAG_SIZES = (1, 4, 8, 16)
ROUNDS = 20
STEPS = 3
"""Of a bag size in a round; the first does not count."""


def main() -> None:
    torch.set_num_threads(1)
    overrides = sys.argv[1:]
    store = prepare(load_recipe(None, overrides).data)
    tokens = store.train.tokens
    alone = Ranks(0, 1, torch.device("cpu"))
    settings: dict[int, tuple[Recipe, TrainState, WindowPlan]] = {}
    for bag_size in BAG_SIZES:
        superposed = [f"superposition.bag_size={bag_size}", "superposition.ratio=1.0", "train.steps=1000"]
        recipe = load_recipe(None, [*overrides, *superposed, "train.precision='float32'"])
        settings[bag_size] = recipe, build_state(recipe, store, alone), recipe.windows(store.train)
    steps: dict[int, list[float]] = {bag_size: [] for bag_size in BAG_SIZES}
    waits: dict[int, list[float]] = {bag_size: [] for bag_size in BAG_SIZES}
    reads: dict[int, list[float]] = {bag_size: [] for bag_size in BAG_SIZES}
    for turn in range(ROUNDS):
        for bag_size, (recipe, state, plan) in settings.items():
            numbers = range(turn * STEPS, (turn + 1) * STEPS)
            windows = read_ahead(partial(plan.read, tokens), numbers)
            for number in numbers:
                started = time.perf_counter()
                window = next(windows)
                waited = time.perf_counter()
                optimizer_step(state, recipe.train, recipe.schedule.stage_at(number), window, lr=1e-3)
                stopped = time.perf_counter()
                if number > numbers.start:
                    waits[bag_size].append(waited - started)
                    steps[bag_size].append(stopped - waited)
            for number in range(500 + numbers.start, 500 + numbers.stop):
                started = time.perf_counter()
                plan.read(tokens, number)
                reads[bag_size].append(time.perf_counter() - started)
    ordinary = statistics.median(steps[1])
    print("bag size   step, ms   against bag size 1    read    wait")
    for bag_size in BAG_SIZES:
        step, wait, read = (statistics.median(times[bag_size]) for times in (steps, waits, reads))
        print(f"{bag_size:8}   {1e3 * step:8.1f}   {step / ordinary:18.3f}   {read / step:5.2%}   {wait / step:5.2%}")


if __name__ == "__main__":
    main()
