"""A small hand-written GPT in a plain training loop, with and without superposition.

    python examples/plain_pytorch.py text.txt --bag-size 4 --ratio 0.3
    python examples/plain_pytorch.py text.txt --bag-size 1 --ratio 0       # ordinary training
    python examples/plain_pytorch.py text.txt --checkpoint run.pt          # resumes from this file, if it exists

Tokens are bytes. `#!` marks the lines that superposition changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superpose import Schedule, SuperposedParts, window_length

VOCAB_SIZE = 256


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, values: Tensor) -> Tensor:
        B, L, D = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).split(D, dim=-1)
        q, k, v = (part.view(B, L, self.heads, -1).transpose(1, 2) for part in (q, k, v + values))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, L, D))
        change: Tensor = self.down(F.gelu(self.up(self.norm_mlp(x))))
        return x + change


class GPT(nn.Module):
    """Learned positions; each block adds value embeddings of the tokens to the attention's own values."""

    def __init__(self, latents: int, width: int = 64, blocks: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.values = nn.Embedding(VOCAB_SIZE, width), nn.Embedding(VOCAB_SIZE, width)
        self.positions = nn.Parameter(torch.zeros(latents, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB_SIZE, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def backbone(self, x: Tensor, values: Tensor) -> Tensor:
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x, values)
        hidden: Tensor = self.norm(x)
        return hidden

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(self.tokens(input_ids), self.values(input_ids)))
        return logits


def train(
    text: bytes,
    schedule: Schedule,
    latents: int = 64,
    rows: int = 8,
    lr: float = 2e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    until: int | None = None,
) -> tuple[GPT, list[float]]:
    """The trained model and the loss of each step; stops before step `until`, to resume from the checkpoint later."""
    data = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
    torch.manual_seed(seed)
    model = GPT(latents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    loss_of = SuperposedParts(model.tokens, model.backbone, model.head, tables={"values": model.values})  #!
    losses: list[float] = []
    if checkpoint and checkpoint.exists():
        stored = torch.load(checkpoint)
        schedule.check_same(stored["schedule"])  #! the switch stays where it was
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        torch.set_rng_state(stored["random"])
        losses = stored["losses"]
    for step in range(len(losses), until or schedule.total_steps):
        s = schedule.bag_size_at(step)  #!
        length = window_length(latents, s)  #! was: latents + 1
        starts = torch.randint(len(data) - length + 1, (rows,))
        window = torch.stack([data[start : start + length] for start in starts]).long()
        loss = loss_of(window, s)  #! was: F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if checkpoint:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
        torch.save({**state, "losses": losses, "schedule": schedule.to_dict()}, checkpoint)  #! with the schedule
    return model, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--bag-size", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--until", type=int, help="stop before this step")
    args = parser.parse_args()
    schedule = Schedule(args.steps, args.bag_size, args.ratio)
    _, losses = train(args.text.read_bytes(), schedule, checkpoint=args.checkpoint, until=args.until)
    for stage in schedule.stages:
        if stage.start >= len(losses):
            break
        what = "loss of bags" if stage.superposes else "loss"
        done = losses[stage.start : stage.stop]
        print(f"steps {stage.start} to {stage.start + len(done)}: {what} {done[0]:.3f} -> {done[-1]:.3f}")


if __name__ == "__main__":
    main()
