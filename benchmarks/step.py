"""What a step costs: superpose beside the model's own loss, and a superposition step beside a recovery step.

    python benchmarks/step.py            # writes benchmarks/results/step.json
    python benchmarks/step.py demo       # or one of the shapes below; prints alone

**Against the model.** A Llama's forward and backward pass through `SuperposedLM` at bag sizes 1, 4 and 8, against
`model(input_ids=..., labels=...)` on as many latents. Its optimizer step is the same and left out. Under bfloat16
both run in autocast.

**The demo.** Whole optimizer steps in the setting of the recipe `cpu-tiny`: bag sizes 4, 8 and 16 against 1.
`read` is how long fetching a step's window from the store takes, as a share of the step, and `wait` what is left of
that when it is read ahead on a thread, as training does: medians, by the clock on the wall.

All bag sizes take turns in one process on one thread, whose CPU time is counted; figures are minima over the turns.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from measure import interleaved, machine
from superpose import SuperposedLM, window_length
from superpose.data.config import prepare
from superpose.data.loader import read_ahead
from superpose.train.distributed import Ranks
from superpose.train.hardware import keep_memory
from superpose.train.recipe_file import load_recipe
from superpose.train.step import build_state, optimizer_step

RESULTS = Path(__file__).parent / "results" / "step.json"
SHAPES = {
    "64 wide, V 1,024": ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}, 1024, 16, 128),
    "512 wide, V 32,000": ({"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}, 32_000, 2, 512),
    "768 wide, V 50,304": ({"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12}, 50_304, 2, 512),
}
"""A Llama, its vocabulary, and the rows and latents of a step."""
ROUNDS = {"64 wide, V 1,024": 40, "512 wide, V 32,000": 4, "768 wide, V 50,304": 3}
BAG_SIZES = (1, 4, 8)
DEMO_BAG_SIZES = (1, 4, 8, 16)
DEMO_ROUNDS = 60


def main() -> None:
    torch.set_num_threads(1)
    keep_memory()  # as training does
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    results: dict[str, list[dict[str, Any]]] = {"against_model": [], "demo": []}
    print("shape                dtype      bag size   step, ms   against the model")
    for dtype in (torch.bfloat16, torch.float32):
        for name in (name for name in SHAPES if name.startswith(chosen)):
            results["against_model"] += against_model(name, dtype)
    if "demo".startswith(chosen):
        results["demo"] = steps_of_the_demo()
    if not chosen:
        facts = {"command": "python benchmarks/step.py", "machine": machine(), "clock": "CPU time of the thread"}
        RESULTS.write_text(json.dumps({**facts, **results}, indent=1) + "\n")


def against_model(name: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Forward and backward passes of one shape, each bag size against the model's own loss."""
    torch.manual_seed(0)
    shape, vocab_size, rows, latents = SHAPES[name]
    config = AutoConfig.for_model(
        "llama",
        **shape,
        intermediate_size=3 * int(str(shape["hidden_size"])),
        vocab_size=vocab_size,
        max_position_embeddings=latents,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).train()
    lm = SuperposedLM(model)

    def ids(length: int) -> torch.Tensor:
        return (torch.rand(rows, length) ** 3 * vocab_size).long()  # with the skew of text

    def plain(row: torch.Tensor) -> torch.Tensor:
        labels = row[:, 1:].contiguous()
        loss: torch.Tensor = model(input_ids=row[:, :-1], labels=labels, shift_labels=labels).loss
        return loss

    losses: dict[str, Callable[[], torch.Tensor]] = {"model": partial(plain, ids(latents + 1))}
    for bag_size in BAG_SIZES:
        window = ids(window_length(latents, bag_size))
        losses[str(bag_size)] = lambda window=window, bag_size=bag_size: lm(window, bag_size).loss  # type: ignore[misc]

    def step(loss: Callable[[], torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            computed = loss()
        torch.autograd.backward(computed)
        model.zero_grad(set_to_none=True)

    seconds = interleaved({arm: partial(step, loss) for arm, loss in losses.items()}, ROUNDS[name], time.thread_time)
    found = []
    for bag_size in BAG_SIZES:
        ratio, short = seconds[str(bag_size)] / seconds["model"], str(dtype).removeprefix("torch.")
        print(f"{name:20} {short:9} {bag_size:9}   {1e3 * seconds[str(bag_size)]:8.1f}   {ratio:17.3f}", flush=True)
        found.append(
            {"shape": name, "dtype": short, "bag_size": bag_size, "seconds": seconds[str(bag_size)], "ratio": ratio}
        )
    return found


def steps_of_the_demo() -> list[dict[str, Any]]:
    """Optimizer steps of the recipe `cpu-tiny` in float32, each bag size against single tokens."""
    store = prepare(load_recipe().data)
    tokens, alone = store.train.tokens, Ranks(0, 1, torch.device("cpu"))
    arms: dict[str, Callable[[], None]] = {}
    waits: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    reads: dict[str, list[float]] = {}

    def arm(name: str, bag_size: int) -> Callable[[], None]:
        settings = [f"superposition.bag_size={bag_size}", "superposition.ratio=1.0", "train.precision='float32'"]
        recipe = load_recipe(None, settings)
        state, plan, stage = build_state(recipe, store, alone), recipe.windows(store.train), recipe.schedule.step_at(0)
        windows = read_ahead(partial(plan.read, tokens), range(DEMO_ROUNDS + 1))
        waits[name], whole[name], reads[name] = [], [], []
        for number in range(500, 500 + DEMO_ROUNDS):
            started = time.perf_counter()
            plan.read(tokens, number)
            reads[name].append(time.perf_counter() - started)

        def run() -> None:
            started = time.perf_counter()
            window = next(windows)
            waited = time.perf_counter()
            optimizer_step(state, recipe.train, stage, window, lr=1e-3)
            stopped = time.perf_counter()
            waits[name].append(waited - started)
            whole[name].append(stopped - waited)

        return run

    for bag_size in DEMO_BAG_SIZES:
        arms[str(bag_size)] = arm(str(bag_size), bag_size)
    seconds = interleaved(arms, DEMO_ROUNDS, time.thread_time)
    print("\nbag size   step, ms   against bag size 1    read    wait")
    found = []
    for name, least in seconds.items():
        step, wait, read = (statistics.median(times[name]) for times in (whole, waits, reads))
        ratio = least / seconds["1"]
        print(f"{name:>8}   {1e3 * least:8.1f}   {ratio:18.3f}   {read / step:5.2%}   {wait / step:5.2%}", flush=True)
        shares = {"read": read / step, "wait": wait / step}
        found.append({"bag_size": int(name), "seconds": least, "ratio": ratio, **shares})
    return found


if __name__ == "__main__":
    main()
