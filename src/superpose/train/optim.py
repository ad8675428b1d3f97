"""AdamW with weight decay on matrices only, and the warmup-stable-decay learning rate of the paper."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class OptimArgs(BaseModel):
    """How weights are updated. Nothing here changes at the switch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    """Steps of linear warmup."""
    decay_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for no clipping."""

    def decay_steps(self, total_steps: int) -> int:
        return round(self.decay_ratio * total_steps)


def learning_rate(args: OptimArgs, step: int, total_steps: int) -> float:
    """Learning rate of step `step`, counted from 0: warmup, constant, linear decay; a pure function of the step."""
    decay_steps = args.decay_steps(total_steps)
    warm = (step + 1) / args.warmup_steps if step < args.warmup_steps else 1.0
    # The last step still moves: at step total_steps, which does not exist, the rate would be 0.
    decayed = (total_steps - step) / (decay_steps + 1) if step >= total_steps - decay_steps else 1.0
    return args.lr * min(warm, decayed)


def build_optimizer(args: OptimArgs, model: nn.Module) -> torch.optim.AdamW:
    """AdamW; matrices and tables decay, vectors (norms, biases) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=args.betas, eps=args.eps, fused=True)
