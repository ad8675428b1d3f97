"""A loop with Accelerate's accumulation, processes, compiler and checkpoints, on a stream of rows or by a plan.

    python examples/accelerate_loop.py text.txt --out out
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py text.txt --out out --accumulate 2
    python examples/accelerate_loop.py text.txt --out out --resume          # from its last checkpoint
    python examples/accelerate_loop.py text.txt --out out --plan --compile inductor

Tokens are bytes, rows are lines. `#!` marks the lines that superposition changes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import LlamaConfig, LlamaForCausalLM

from superpose import Schedule, SuperposedLM
from superpose.data.stream import Batches, PlannedWindows, WindowStream
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan

LATENTS, ROWS = 32, 8


def train(
    text: bytes,
    schedule: Schedule,
    out: Path,
    plan: bool = False,
    accumulate: int = 1,
    backend: str = "no",
    resume: bool = False,
    until: int | None = None,
) -> list[float]:
    """The loss of each step trained here; writes a checkpoint at the end."""
    accelerator = Accelerator(gradient_accumulation_steps=accumulate, dynamo_backend=backend)
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=LATENTS, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    lm, optimizer = accelerator.prepare(SuperposedLM(model), optimizer)  #! was: model
    rank, ranks = accelerator.process_index, accelerator.num_processes
    batches: Batches  #! was: prepare(DataLoader(...))
    if plan:
        tokens = TokenArray([np.frombuffer(text, dtype=np.uint8)], ["text"], 256)
        shuffled = WindowPlan(schedule, ROWS, LATENTS, len(tokens), seed=0)  #!
        batches = PlannedWindows(shuffled, tokens, accumulate, rank, ranks)  #!
    else:
        rows = ([*line] for line in text.splitlines(keepends=True))
        batches = WindowStream(rows, schedule, ROWS, LATENTS, accumulate, rank, ranks)  #!
    accelerator.register_for_checkpointing(batches)  #! saves the schedule too
    if resume:
        accelerator.load_state(str(out))
    losses: list[float] = []
    total = torch.zeros((), device=accelerator.device)
    for batch in batches:
        with accelerator.accumulate(lm):
            window = batch["input_ids"].to(accelerator.device)
            loss = lm(window, batch["bag_size"]).loss  #! was: lm(input_ids, labels=input_ids).loss
            accelerator.backward(loss)
            total += loss.detach() / accumulate
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(lm.parameters(), 1.0)
                losses.append(accelerator.reduce(total, "mean").item())
                total.zero_()
            optimizer.step()
            optimizer.zero_grad()
        if batches.position == (until or schedule.total_steps) * accumulate:
            break
    accelerator.save_state(str(out))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--bag-size", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--compile", default="no", metavar="BACKEND")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--until", type=int, help="stop before this step")
    args = parser.parse_args()
    schedule = Schedule(args.steps, args.bag_size, args.ratio)
    text = args.text.read_bytes()
    losses = train(text, schedule, args.out, args.plan, args.accumulate, args.compile, args.resume, args.until)
    if Accelerator().is_main_process:
        print(*(f"{loss:.5f}" for loss in losses))


if __name__ == "__main__":
    main()
