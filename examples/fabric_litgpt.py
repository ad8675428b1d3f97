"""litgpt's model in Lightning Fabric, on a stream of rows or by a plan.

    pip install lightning && pip install litgpt
    python examples/fabric_litgpt.py text.txt --devices 2 --accumulate 2 --compile inductor
    python examples/fabric_litgpt.py text.txt --plan --checkpoint run.ckpt

Tokens are bytes, rows are lines. `#!` marks the lines that superposition changes.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor, nn

from superpose import Schedule, SuperposedParts
from superpose.data.stream import Batches, PlannedWindows, WindowStream
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan

LATENTS, ROWS = 32, 8


class Superposed(nn.Module):  #!
    """A litgpt GPT whose forward pass is the loss of a window; DDP and FSDP wrap it."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def backbone(self, x: Tensor) -> Tensor:
        """What `GPT.forward` does between embedding and head."""
        gpt, latents = self.gpt, x.shape[1]
        if gpt.config.scale_embeddings:
            x = x * gpt.config.n_embd**0.5
        for block in gpt.transformer.h:
            x = block(x, gpt.cos[:latents].unsqueeze(0), gpt.sin[:latents].unsqueeze(0))
        hidden: Tensor = gpt.transformer.ln_f(x)
        return hidden

    def forward(self, window: Tensor, bag_size: int) -> Tensor:
        return SuperposedParts(self.gpt.transformer.wte, self.backbone, self.gpt.lm_head)(window, bag_size)


def batches_of(text: bytes, schedule: Schedule, plan: bool, accumulate: int, rank: int, ranks: int) -> Batches:
    """A stream in its order, or the whole text by a plan."""
    if not plan:
        rows = ([*line] for line in text.splitlines(keepends=True))
        return WindowStream(rows, schedule, ROWS, LATENTS, accumulate, rank, ranks)
    tokens = TokenArray([np.frombuffer(text, dtype=np.uint8)], ["text"], 256)
    return PlannedWindows(WindowPlan(schedule, ROWS, LATENTS, len(tokens), seed=0), tokens, accumulate, rank, ranks)


def train(
    text: bytes,
    schedule: Schedule,
    plan: bool = False,
    accumulate: int = 1,
    backend: str = "",
    checkpoint: Path | None = None,
    until: int | None = None,
    devices: int = 1,
) -> list[float]:
    """The loss of each step trained here; resumes from the checkpoint, if it exists."""
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": LATENTS, "rotary_percentage": 1.0}
    gpt = GPT(Config(vocab_size=256, padded_vocab_size=256, **shape))
    gpt.apply(lambda part: nn.init.normal_(part.weight, std=0.02) if isinstance(part, nn.Embedding) else None)
    lm: Any = Superposed(gpt)  #! was: gpt
    if backend:
        lm = torch.compile(lm, backend=backend)
    optimizer: Any = torch.optim.AdamW(gpt.parameters(), lr=2e-3, betas=(0.9, 0.95))
    lm, optimizer = fabric.setup(lm, optimizer)
    batches = batches_of(text, schedule, plan, accumulate, fabric.global_rank, fabric.world_size)  #! was: a loader
    state: dict[str, Any] = {"lm": lm, "optimizer": optimizer, "batches": batches}  #! with the schedule
    if checkpoint and checkpoint.exists():
        fabric.load(checkpoint, state, weights_only=True)
    losses = []
    while batches.position < (until or schedule.total_steps) * accumulate:
        total = torch.zeros(())
        for part in range(accumulate):
            batch = batches.read()
            with fabric.no_backward_sync(lm, enabled=part < accumulate - 1):
                loss = lm(batch["input_ids"], batch["bag_size"])  #! was: chunked_cross_entropy(lm(input_ids), targets)
                fabric.backward(loss / accumulate)
            total += loss.detach() / accumulate
        fabric.clip_gradients(lm, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(fabric.all_reduce(total, reduce_op="mean")))
    if checkpoint:
        fabric.save(checkpoint, state)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--bag-size", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--compile", default="", metavar="BACKEND")
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    losses = train(
        args.text.read_bytes(),
        Schedule(args.steps, args.bag_size, args.ratio),
        args.plan,
        args.accumulate,
        args.compile,
        args.checkpoint,
        devices=args.devices,
    )
    rank_zero_only(print)(*(f"{loss:.5f}" for loss in losses))


if __name__ == "__main__":
    main()
