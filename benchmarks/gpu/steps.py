"""Whole steps of two shapes, forward, backward and update, beside those of the plain model."""

from functools import partial
from typing import Any

import torch

from gpu import shapes
from gpu.bench import Bench
from superpose import SuperposedLM, window_length

PLAIN = "model(input_ids, labels)"
BAG_SIZES = (1, 4, 8)
SETTINGS = {  # rows and latents; GPT-2's vocabulary as it is usually padded, for the plain model's sake
    "gpt2-124m": {"vocab_size": 50304, "rows": 16, "latents": 1024},
    "paper-270m": {"vocab_size": 128256, "rows": 8, "latents": 2048},
}
TINY = {"vocab_size": 203, "rows": 2, "latents": 16}


def measure(bench: Bench, seconds: float) -> dict[str, Any]:
    """Milliseconds, latents and tokens a second, megabytes and MFU, in bfloat16 by autocast, blocks compiled.

    All ways have the same model, optimizer and compiled blocks; that the plain model's loss is compiled too is to its
    advantage. Shapes that are not begun in `seconds` are left out.
    """
    stop, rows = bench.left - seconds, []
    left_out: list[str] = []
    for recipe, setting in SETTINGS.items():
        if bench.left < stop + seconds / 4:
            left_out.append(recipe)
            continue
        rows += _measure(bench, recipe, **(TINY if bench.small else setting))
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return {"rows": rows, "left_out": left_out}


def _measure(bench: Bench, recipe: str, vocab_size: int, rows: int, latents: int) -> list[dict[str, Any]]:
    model = shapes.build(bench, recipe, vocab_size, latents)
    lm = SuperposedLM(model)
    if not bench.small:
        for block in shapes.blocks(model):
            block.compile()
        model.loss_function = torch.compile(model.loss_function)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    windows = {
        size: torch.randint(0, vocab_size, (rows, window_length(latents, size)), device=bench.device)
        for size in BAG_SIZES
    }
    ids = windows[1][:, :-1].contiguous()

    def step(bag_size: int | None) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            found = model(input_ids=ids, labels=ids) if bag_size is None else lm(windows[bag_size], bag_size)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    arms = {PLAIN: partial(step, None)} | {f"superpose, s {size}": partial(step, size) for size in BAG_SIZES}
    for arm in arms.values():
        arm()  # compiles, and makes the optimizer's moments, which are no peak of a step
    peaks = {name: bench.peak_megabytes(arm) for name, arm in arms.items()}
    least = bench.seconds(arms, rounds=4, calls=3)
    cost = shapes.flops(model, latents)
    peak = shapes.peak_flops(torch.cuda.get_device_name()) if bench.device.type == "cuda" else None
    found = []
    for (name, taken), size in zip(least.items(), (1, *BAG_SIZES), strict=True):
        rate = rows * latents / taken
        found.append(
            {
                **{"recipe": recipe, "rows": rows, "latents": latents, "vocab_size": vocab_size, "method": name},
                **{"ms": round(1e3 * taken, 2), "to_plain": round(taken / least[PLAIN], 3)},
                **{"latents_per_s": round(rate), "tokens_per_s": round(rate * size)},
                **{"mfu": round(rate * cost / peak, 3) if peak else None, "peak_mb": peaks[name]},
            }
        )
    torch.compiler.reset()
    return found
