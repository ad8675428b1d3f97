"""The load of a mixture of experts, and the two ways in which families keep it even.

A loss: router logits -> share of each expert, and a loss that evens the shares out. Switch Transformer, arXiv
2101.03961, equations 4 to 6, over all layers together. A bag is one latent and counts once.

A bias: routers of DeepSeek-V3's kind add a bias to each expert's score when they choose, and after each optimizer step
the bias of an expert with more than its share falls, that of one with less rises (arXiv 2412.19437, section 2.1.2).
transformers holds these biases and never moves them; `BiasBalance` does.

Shapes: B rows of a batch, L latents, N = B x L positions, E experts, K of them chosen for each latent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BIASES = ("e_score_correction_bias", "expert_bias")
"""What families call the bias of their routers."""
BIAS_RATE = 1e-3
"""By how much a bias moves in a step (arXiv 2412.19437, section 4.2)."""


def router_coefficient(model: Any) -> float | None:
    """Factor of the load-balancing loss that a causal LM's own forward pass adds; None if its family has none."""
    if not hasattr(sys.modules[type(model).__module__], "load_balancing_loss_func"):
        return None
    names = [name for name in ("router_aux_loss_coef", "aux_loss_coef") if hasattr(model, name)]
    # The dense members of such a family have no experts, or one.
    several = (getattr(model, "num_experts", None) or 0) > 1 and getattr(model.config, "is_moe", True)
    return float(getattr(model, names[0])) if names and several else None


def router_biases(model: nn.Module) -> dict[str, Tensor]:
    """The biases of a model's routers that are buffers, by name: training changes them, and no optimizer does."""
    return {name: buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in BIASES}


def balance_loss(
    router_logits: Sequence[Tensor],
    chosen: int,
    counted: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """E x sum over experts of (choices per latent) x (mean router probability), and the experts' loads.

    Args:
        router_logits: of each layer [N, E] or [B, L, E].
        chosen: K, experts a latent is sent to.
        counted: 0 for latents that do not count [B, L].
        group: ranks among which a step's latents are divided. Choices are then counted over all of them, so that the
            mean of the ranks' losses, and of their gradients, is that of the whole step; counted on each rank alone,
            it would force every rank's share to be even. Each rank has as many latents.

    Returns:
        the loss, K where the load is even; and the share of all choices that fell on each expert [E].
    """
    logits = torch.stack([layer.flatten(0, -2) for layer in router_logits])
    probabilities = logits.float().softmax(dim=-1)
    weight = torch.ones(logits.shape[1], device=logits.device)
    if counted is not None:
        weight = counted.flatten().to(weight)
    latents = weight.sum().clamp(min=1) * len(router_logits)
    with torch.no_grad():
        picks = probabilities.topk(chosen, dim=-1).indices
        counts = torch.zeros(logits.shape[-1], device=logits.device)
        counts.scatter_add_(0, picks.flatten(), weight.view(1, -1, 1).expand_as(picks).flatten())
        choices = counts / latents
        if group is not None:
            dist.all_reduce(choices, group=group)
            choices = choices / group.size()
    mean_probability = (probabilities * weight.view(1, -1, 1)).sum(dim=(0, 1)) / latents
    return logits.shape[-1] * (choices * mean_probability).sum(), choices / chosen


class BiasBalance:
    """The routers of a model that are balanced by a bias, and what was chosen since their biases last moved.

    Args:
        model: whose experts are called with the latents, the experts chosen for each and their weights, as
            transformers does it.
        group: ranks among which a step's latents are divided.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self._routers: list[tuple[nn.Module, str, nn.Module]] = []
        """Module and name of a bias, and the experts it chooses."""
        for block in model.modules():
            experts = getattr(block, "experts", None)
            found = [(part, name) for part in block.modules() for name in BIASES if hasattr(part, name)]
            if isinstance(experts, nn.Module) and found:
                self._routers.append((*found[0], experts))
        self._counts: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._routers)

    @contextmanager
    def counting(self, counted: Tensor | None) -> Iterator[None]:
        """Meanwhile choices are counted, of latents with `counted` [B, L] other than 0 alone."""
        if not self._counts:
            biases = map(self._bias, range(len(self)))
            self._counts = [torch.zeros(bias.numel(), device=bias.device) for bias in biases]

        def count(number: int) -> Any:
            def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
                picks = [*arguments, *named.values()][1].detach().flatten(0, -2)
                ones = torch.ones_like(picks, dtype=torch.float32)
                weight = ones if counted is None else ones * counted.reshape(-1, 1)
                self._counts[number].scatter_add_(0, picks.flatten(), weight.flatten())

            return hook

        with ExitStack() as hooks:
            for number, (_, _, experts) in enumerate(self._routers):
                handle = experts.register_forward_pre_hook(count(number), with_kwargs=True)
                hooks.callback(handle.remove)
            yield

    def load(self) -> Tensor:
        """Share of the choices since the last step that fell on each expert [E], mean over layers, on this rank."""
        counts = torch.stack(self._counts)
        return (counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)).mean(dim=0)

    @torch.no_grad()
    def step(self) -> None:
        """Moves each bias by `BIAS_RATE` towards an even load, and counts from 0 again."""
        if not self._counts:
            return
        counts = torch.stack(self._counts)
        if self.group is not None:
            dist.all_reduce(counts, group=self.group)
        moves = BIAS_RATE * (counts.mean(dim=-1, keepdim=True) - counts).sign()
        for number, move in enumerate(moves):
            bias = self._bias(number)
            bias += move.to(bias).view_as(bias)
        self._counts = []

    def forget(self) -> None:
        """Counts from 0 again, after passes that are part of no step."""
        self._counts = []

    def _bias(self, number: int) -> Tensor:
        module, name, _ = self._routers[number]
        bias: Tensor = getattr(module, name)
        return bias
