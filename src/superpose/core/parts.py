"""A model of your own in a loop of your own: embedding, backbone and head as callables.

    window -> fold -> embedding, mean over each bag -> backbone -> head and multi-hot loss
                side inputs, folded as the tokens are ----^

Nothing is asked of the model but that it can be called in three parts. For Hugging Face models there is
`superpose.SuperposedLM`, which finds the parts itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from superpose.core.embed import embed_tokens
from superpose.core.fold import Mode, fold, fold_mask, split_window
from superpose.core.linear_loss import linear_multi_hot_cross_entropy
from superpose.core.loss import Variant, Weighting, count_rows, multi_hot_cross_entropy, target_weights

Folding = Literal["mean", "any", "first", "last"]
"""What a bag has of a side input of its tokens: their mean (features), any (masks), the first's or the last's
(positions, document ids)."""


def fold_side(values: Tensor, bag_size: int, how: Folding) -> Tensor:
    """One value a bag of a per-token side input: [B, S x L, ...] to [B, L, ...].

    Raises:
        ValueError: an unknown folding, or a row that is not whole bags.
    """
    if how not in get_args(Folding):
        raise ValueError(f"a side input is folded by {how!r}; choose one of {', '.join(get_args(Folding))}")
    if bag_size == 1:
        return values
    if how == "any":
        return fold_mask(values, bag_size)
    bags = fold(values, bag_size)
    if how == "mean":
        return bags.mean(dim=2)
    return bags[:, :, 0 if how == "first" else -1]


@dataclass(frozen=True)
class SuperposedParts:
    """The loss of a window, for any model that can be called in three parts.

    Args:
        embedding: ids [...] to vectors [..., D]; an `nn.Embedding` is summed without holding each token's vector.
        backbone: vectors [B, L, D] and the side inputs, by name, to the last hidden states [B, L, D].
        head: an `nn.Linear`, whose logits are then never held, or any function of hidden states to logits [B, L, V].
        weighting, variant: as in `superpose.SuperposedLM`.
        z_loss, softcap: as in `linear_multi_hot_cross_entropy`. A head that is a function does its own capping.
        tables: further per-token vectors that the backbone takes, by name (value embeddings, embeddings of each
            layer): ids [...] to vectors [..., D]. A bag's is the mean of its tokens', as at the input.
        sides: how each further side input is folded, by name; their values come with the call.

    The same object serves both phases; at bag size 1 it is ordinary next-token cross-entropy::

        loss_of = SuperposedParts(model.embedding, model.blocks, model.head)
        for step in range(schedule.total_steps):
            s = schedule.bag_size_at(step)
            loss_of(get_batch(window_length(L, s)), s).backward()
    """

    embedding: Callable[[Tensor], Tensor]
    backbone: Callable[..., Tensor]
    head: Callable[[Tensor], Tensor]
    weighting: Weighting | Sequence[float] = "uniform"
    variant: Variant = "mce"
    z_loss: float = 0.0
    softcap: float | None = None
    tables: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    sides: Mapping[str, Folding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.softcap is not None and not isinstance(self.head, nn.Linear):
            raise ValueError("softcap would be ignored: the head is a function; cap its logits inside it")

    def __call__(
        self,
        window: Tensor,
        bag_size: int = 1,
        mode: Mode = "full",
        normalizer: Tensor | float | None = None,
        **sides: Tensor,
    ) -> Tensor:
        """Loss of a batch of windows, a scalar in nats.

        Args:
            window: token ids [B, `window_length(L, bag_size, mode)`]; `IGNORE_INDEX` takes part in nothing.
            bag_size: S, tokens in a bag; 1 is ordinary training.
            mode: see `split_window`.
            normalizer: divides the sum of the rows' losses, see `SuperposedLM.forward`.
            sides: per-token side inputs, each [B, as many as the window, ...], or without the last bag.

        Raises:
            ValueError: the window does not fit the bag size, or a side input has no folding or no value.
        """
        if sides.keys() != self.sides.keys():
            raise ValueError(
                f"side inputs {sorted(sides)} were given, foldings for {sorted(self.sides)}; "
                f"name each in `sides` and give it with every window"
            )
        inputs, targets = split_window(window, bag_size, mode)
        targets = targets if targets.dim() == 3 else targets.unsqueeze(-1)
        folded = {
            name: fold_side(values[:, : inputs[0].numel()], inputs.shape[2] if inputs.dim() == 3 else 1, how)
            for name, how, values in ((name, how, sides[name]) for name, how in self.sides.items())
        }
        vectors = {name: embed_tokens(inputs, table) for name, table in self.tables.items()}
        hidden = self.backbone(embed_tokens(inputs, self.embedding), **vectors, **folded)
        weights = target_weights(targets, self.weighting)
        if isinstance(self.head, nn.Linear):
            total = linear_multi_hot_cross_entropy(
                hidden,
                self.head.weight,
                targets,
                weights,
                bias=self.head.bias,
                reduction="sum",
                variant=self.variant,
                z_loss=self.z_loss,
                softcap=self.softcap,
            )
        else:
            logits = self.head(hidden)
            total = multi_hot_cross_entropy(
                logits, targets, weights, reduction="sum", variant=self.variant, z_loss=self.z_loss
            )
        rows = count_rows(targets, weights).clamp(min=1) if normalizer is None else torch.as_tensor(normalizer)
        return total / rows
