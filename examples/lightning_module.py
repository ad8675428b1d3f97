"""Lightning's Trainer with its accumulation, processes and checkpoints, on a stream of rows or by a plan.

    pip install lightning
    python examples/lightning_module.py text.txt --out out --devices 2 --accumulate 2
    python examples/lightning_module.py text.txt --out out --resume out/last.ckpt
    python examples/lightning_module.py text.txt --out out --plan --compile inductor

Tokens are bytes, rows are lines. `#!` marks the lines that superposition changes.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from superpose import Schedule, SuperposedLM
from superpose.data.stream import Batches, PlannedWindows, WindowStream
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan

LATENTS, ROWS = 32, 8


class Module(lightning.LightningModule):
    """A small Llama that trains on windows of a stream or a plan."""

    def __init__(
        self, text: bytes, schedule: Schedule, plan: bool = False, accumulate: int = 1, backend: str = ""
    ) -> None:
        super().__init__()
        self.text, self.schedule, self.plan, self.accumulate = text, schedule, plan, accumulate
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=LATENTS, **sizes))
        self.lm = SuperposedLM(model)  #! was: model
        if backend:
            self.lm.compile(backend=backend)
        self.losses: list[float] = []
        self.stored: dict[str, Any] | None = None

    def train_dataloader(self) -> DataLoader[Any]:
        shares = self.accumulate, self.trainer.global_rank, self.trainer.world_size
        self.batches: Batches
        if self.plan:
            tokens = TokenArray([np.frombuffer(self.text, dtype=np.uint8)], ["text"], 256)
            shuffled = WindowPlan(self.schedule, ROWS, LATENTS, len(tokens), seed=0)  #!
            self.batches = PlannedWindows(shuffled, tokens, *shares)  #!
        else:
            rows = ([*line] for line in self.text.splitlines(keepends=True))
            self.batches = WindowStream(rows, self.schedule, ROWS, LATENTS, *shares)  #!
        if self.stored:
            self.batches.load_state_dict(self.stored)  #!
        return DataLoader(self.batches, batch_size=None)  #! was: DataLoader(rows, batch_size=...)

    def training_step(self, batch: dict[str, Any], number: int) -> Tensor:
        loss: Tensor = self.lm(batch["input_ids"], batch["bag_size"]).loss  #! was: (input_ids, labels=input_ids).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3, betas=(0.9, 0.95))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = self.batches.state_dict()  #! with the schedule

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stored = checkpoint["batches"]  #!


def train(
    text: bytes,
    schedule: Schedule,
    out: Path,
    plan: bool = False,
    accumulate: int = 1,
    backend: str = "",
    resume: Path | None = None,
    until: int | None = None,
    devices: int = 1,
) -> list[float]:
    """The loss of each forward pass of this process; `out`/last.ckpt resumes it."""
    lightning.seed_everything(0, verbose=False)
    module = Module(text, schedule, plan, accumulate, backend)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        use_distributed_sampler=False,  #! every process reads its own rows
        max_steps=until or schedule.total_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(out / "last.ckpt")
    return module.losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--bag-size", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--compile", default="", metavar="BACKEND")
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    schedule, text = Schedule(args.steps, args.bag_size, args.ratio), args.text.read_bytes()
    losses = train(
        text, schedule, args.out, args.plan, args.accumulate, args.compile, args.resume, devices=args.devices
    )
    print(f"loss of bags {losses[0]:.3f}, at the end {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
