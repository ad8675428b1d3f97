"""Ordinary training and superposition side by side at equal steps, latents and FLOPs, for the minutes that are left."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gpu import shapes
from gpu.bench import ROOT, Bench
from superpose import Schedule, SuperposedLM, window_length

LR = 1e-3
BAG_SIZE, RATIO = 4, 0.3
FEW = 8


class Text:
    """Tokens that a process makes of the machine's own text while other parts are measured."""

    def __init__(self, bench: Bench) -> None:
        self.folder = tempfile.TemporaryDirectory()
        arguments = [self.folder.name, *(("1", "300", str(ROOT / "src")) if bench.small else ("500", "16384"))]
        few = {**os.environ, "RAYON_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}  # others measure meanwhile
        self.process = subprocess.Popen([sys.executable, "-m", "gpu.text", *arguments], env=few)

    def wait(self, seconds: float) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Training and held-out tokens, int64, and what they are made of."""
        if self.process.wait(timeout=seconds):
            raise RuntimeError("no text: gpu.text has ended with an error, which stands above")
        folder = Path(self.folder.name)
        facts = json.loads((folder / "text.json").read_text())
        train, val = (torch.from_numpy(np.load(folder / f"{name}.npy").astype(np.int64)) for name in ("train", "val"))
        return train, val, facts

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def measure(bench: Bench, text: Text) -> dict[str, Any]:
    """Held-out next-token losses of both along their steps."""
    train, val, facts = text.wait(max(1.0, min(120.0, bench.left / 2)))
    train, val = train.to(bench.device), val.to(bench.device)
    rows, latents = (4, 16) if bench.small else (64, 512)
    model = shapes.build(bench, "gpt2-124m", facts["vocab_size"], latents)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not bench.small:
        for block in shapes.blocks(model):
            block.compile()

    def run(schedule: Schedule) -> tuple[list[tuple[int, float]], float]:
        model.load_state_dict(first)
        return _train(bench, model, schedule, train, val, rows, latents)

    # A few steps of each kind say how many fit, the second time, when all is compiled.
    times = [min(run(Schedule(FEW, size, 1.0))[1] for _ in range(2)) for size in (1, BAG_SIZE)]
    raw = 1 + RATIO * (BAG_SIZE - 1)
    fits = int(0.88 * bench.left / (2 * max(times)))
    once = int(len(train) / (rows * latents * raw))
    steps = 20 if bench.small else max(10, min(fits, once))
    arms = {"ordinary": Schedule(steps), "superposition": Schedule(steps, BAG_SIZE, RATIO)}
    found: list[dict[str, Any]] = []
    for name, schedule in arms.items():
        losses, seconds = run(schedule)
        found.append(
            {
                **{"run": name, "steps": steps, "latents": steps * rows * latents},
                **{"raw_tokens": schedule.raw_tokens(rows * latents), "ms_per_step": round(1e3 * seconds, 2)},
                **{"val_loss": losses[-1][1], "losses": losses},
            }
        )
    gain = found[0]["val_loss"] - found[1]["val_loss"]
    return {
        **{"rows": found, "text": facts, "lr": LR, "bag_size": BAG_SIZE, "ratio": RATIO},
        **{"gain_nats": round(gain, 4), "steps_that_fit": fits, "steps_of_the_text": once},
    }


def _train(
    bench: Bench, model: Any, schedule: Schedule, tokens: Tensor, val: Tensor, rows: int, latents: int
) -> tuple[list[tuple[int, float]], float]:
    """(step, held-out loss) at ten steps or more, the last among them, and the seconds of a step without measuring."""
    lm = SuperposedLM(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    total, at, spent, losses = schedule.total_steps, 0, 0.0, []
    began = time.monotonic()
    for step in range(total):
        bag_size = schedule.bag_size_at(step)
        length = rows * window_length(latents, bag_size)
        if at + length > len(tokens):
            at = 0
        window = tokens[at : at + length].view(rows, -1)
        at += length
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / (0.1 * total), (total - step) / (0.3 * total))
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = lm(window, bag_size).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if total > FEW and ((step + 1) % (total // 10) == 0 or step + 1 == total):
            bench.wait()
            spent += time.monotonic() - began
            losses.append((step + 1, round(_held_out(bench, model, val, latents), 4)))
            began = time.monotonic()
    bench.wait()
    return losses, (spent + time.monotonic() - began) / total


@torch.no_grad()
def _held_out(bench: Bench, model: Any, val: Tensor, latents: int) -> float:
    """Nats a token, of at most 256 rows, by the model's own forward pass."""
    rows = min(256, len(val) // (latents + 1))
    windows = val[: rows * (latents + 1)].view(rows, -1)
    losses = []
    for part in windows.split(32):  # type: ignore[no-untyped-call]
        # Compiled, it would be compiled again for being without gradients.
        with torch.compiler.set_stance("force_eager"), torch.autocast(bench.device.type, torch.bfloat16):
            logits = model(input_ids=part[:, :-1]).logits
        losses.append(F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten(), reduction="none"))
    return torch.cat(losses).mean().item()
