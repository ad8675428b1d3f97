"""A plain training loop with DDP, gradient accumulation and torch.compile, on a stream of rows.

    python examples/distributed_loop.py text.txt
    torchrun --nproc-per-node 2 examples/distributed_loop.py text.txt --accumulate 2 --compile inductor
    python examples/distributed_loop.py text.txt --plan                  # shuffled windows of the whole text
    python examples/distributed_loop.py text.txt --checkpoint run.pt     # resumes from this file, if it exists

Tokens are bytes, rows are lines. `#!` marks the lines that superposition changes.
"""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from superpose import Schedule, SuperposedLM
from superpose.data.stream import Batches, PlannedWindows, WindowStream
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan

LATENTS, ROWS = 32, 8


def batches_of(text: bytes, schedule: Schedule, plan: bool, accumulate: int, rank: int, ranks: int) -> Batches:
    """A stream in its order, or the whole text by a plan: the same on all processes; each takes its own rows."""
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
) -> list[float]:
    """The loss of each step; stops before step `until`, to resume from the checkpoint later."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=LATENTS, **sizes))
    lm: Any = SuperposedLM(model)  #! was: model
    if backend:
        lm = torch.compile(lm, backend=backend)
    if ranks > 1:
        lm = DistributedDataParallel(lm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    batches = batches_of(text, schedule, plan, accumulate, rank, ranks)  #! was: a loader of rows of LATENTS + 1 tokens
    losses: list[float] = []
    if checkpoint and checkpoint.exists():
        stored = torch.load(checkpoint)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        batches.load_state_dict(stored["batches"])  #! refuses a schedule with another switch
        losses = stored["losses"]
    for _ in range(len(losses), until or schedule.total_steps):
        total = torch.zeros(())
        for part in range(accumulate):
            batch = batches.read()
            last = part == accumulate - 1
            with nullcontext() if last or ranks == 1 else lm.no_sync():
                loss = lm(batch["input_ids"], batch["bag_size"]).loss  #! was: lm(input_ids, labels=input_ids).loss
                (loss / accumulate).backward()
            total += loss.detach() / accumulate / ranks
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if ranks > 1:
            dist.all_reduce(total)
        losses.append(total.item())
    if checkpoint and rank == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
        torch.save({**state, "batches": batches.state_dict()}, checkpoint)  #! the same on all processes
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--bag-size", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--compile", default="", metavar="BACKEND")
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    schedule = Schedule(args.steps, args.bag_size, args.ratio)
    losses = train(args.text.read_bytes(), schedule, args.plan, args.accumulate, args.compile, args.checkpoint)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(*(f"{loss:.5f}" for loss in losses))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
