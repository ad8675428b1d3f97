"""Extra heads: multi-token prediction in training alone. They are dropped afterwards, and the model is as it ever was.

    hidden h_j --+-- U ------------> what the model itself predicts there     bag j + 1
                 +-- U (1 + W_1) --> what it is to predict one latent later   bag j + 2
                 +-- U (1 + W_2) --> two latents later                        bag j + 3

Head i is asked at latent j for what the model is asked for at latent j + i; at bag size 1 that is token j + 1 + i. U is
the model's own unembedding, and W_i is all that a head has of its own: one matrix [D, D], zero at first.

Why this head of all there are. A shared unembedding with heads before it is the architecture of arXiv 2404.19737
(section 2); an unembedding for each head would have n x V x D weights (its appendix B). There each head is a layer of
the transformer, and a single linear map is its simplest alternative (appendix B). We take the linear map: it fits every
family of models, and what a family does to its hidden states or logits (a scale, a cap) holds for a head as it stands.
Starting each head at the model's own prediction is Medusa's way (arXiv 2401.10774, section 2.1). Modules that look up
the tokens in between (DeepSeek-V3, arXiv 2412.19437, section 2.2) are layers of one family, and their input, the next
token, is known to no latent of bags.

The loss is the model's own plus a weight times the mean of the heads' (arXiv 2412.19437, equation 25)::

    loss = CE_0 + weight / n x (CE_1 + ... + CE_n)

Shapes: B rows of a batch, L latents, S tokens in a bag, D width, n extra heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from superpose.core.fold import IGNORE_INDEX
from superpose.core.numbers import is_whole


class ExtraHeads(nn.Module):
    """n linear maps from what the model's head multiplies to what it multiplies for predictions further ahead.

    Args:
        count: n; 0 for none.
        like: the weight of the model's head [V, D], whose width, dtype and device the heads have.

    Raises:
        ValueError: the number is no whole one of 0 or more.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        super().__init__()
        check_heads(count)
        self.layers = nn.ModuleList(_head(like) for _ in range(count))

    def __len__(self) -> int:
        return len(self.layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states of all heads [n x B, L, D], head after head, of the model's own [B, L, D]."""
        return torch.cat([hidden + layer(hidden) for layer in self.layers])

    def resized(self, count: int, like: Tensor) -> ExtraHeads:
        """So many heads: the first of these as they are, and fresh ones where there are too few."""
        heads = ExtraHeads(count, like)
        for number, layer in zip(range(count), self.layers, strict=False):
            heads.layers[number] = layer
        return heads


def _head(like: Tensor) -> nn.Linear:
    width = like.shape[1]
    layer = nn.Linear(width, width, bias=False, device="meta").to(like.dtype).to_empty(device=like.device)
    nn.init.zeros_(layer.weight)  # no random number is drawn, so the model and its data are those of a run without
    return layer


def split_ahead(inputs: Tensor, targets: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a window of L + n latents: the L that the model reads, its own targets, and those of n heads.

    A latent that holds nothing predicts nothing, by a head either.

    Args:
        inputs, targets: as `split_window` gives them, [B, L + n] or [B, L + n, S].
        heads: n.

    Returns:
        inputs and targets [B, L, ...], and the heads' targets [n x B, L, ...], head after head.

    Raises:
        ValueError: the window has no latent left for the model.
    """
    latents = inputs.shape[1] - heads
    if latents < 1:
        raise ValueError(
            f"a window of {inputs.shape[1]} latent(s) holds nothing to read beside what {heads} extra head(s) predict; "
            f"give window_length(latents + {heads}, bag_size, mode) tokens a row"
        )
    inputs, ahead = inputs[:, :latents], torch.cat([targets[:, i : i + latents] for i in range(1, heads + 1)])
    empty = inputs == IGNORE_INDEX
    empty = (empty if inputs.dim() == 2 else empty.all(dim=-1)).repeat(heads, 1)
    ahead = ahead.masked_fill(empty if ahead.dim() == 2 else empty.unsqueeze(-1), IGNORE_INDEX)
    return inputs, targets[:, :latents], ahead


def check_heads(count: object) -> None:
    """A ValueError for what is no number of heads."""
    if not is_whole(count) or count < 0:
        raise ValueError(f"extra_heads is {count!r}; give a whole number of heads, 0 for none")


def check_weight(weight: Tensor | float | None, heads: int) -> None:
    """
    Raises:
        ValueError: the heads and their weight do not belong together, or it is no number of 0 or more.
    """
    if weight is None:
        if heads and torch.is_grad_enabled():
            raise ValueError(
                f"the loss would leave out {heads} extra head(s); give extra_heads_weight, or drop the heads"
            )
    elif not heads:
        raise ValueError("extra_heads_weight weighs extra heads, and there are none; leave it out")
    elif not isinstance(weight, Tensor) and not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"extra_heads_weight is {weight}; give a number of 0 or more")
