"""The loss of a window, for any model that can be called in three parts: embedding, backbone and head.

    window -> fold -> embedding, mean over each bag -> backbone -> head and multi-hot loss -> normalise
                side inputs, folded as the tokens are ----^

Nothing else is asked of the model. For Hugging Face models there is `superpose.SuperposedLM`, which finds the parts
itself.

Shapes: B rows of a batch, L latents (positions of bags, what the model sees), S tokens in a bag, N = B x L positions,
D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from superpose.core.ablations import WEIGHTED, Variant, ablated_loss
from superpose.core.embed import Pooling, embed_tokens
from superpose.core.extra_heads import ExtraHeads, check_weight, split_ahead
from superpose.core.fold import Mode, document_positions, fold, fold_mask, split_window
from superpose.core.linear_loss import linear_multi_hot_cross_entropy
from superpose.core.loss import Weighting, check_softcap, count_positions, multi_hot_cross_entropy, target_weights

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


class SuperposedOutput(NamedTuple):
    """The loss of a window and what it is made of.

    Attributes:
        loss: what to call `backward()` on: cross-entropy and, for a mixture of experts, its router loss.
        cross_entropy: the (multi-hot) cross-entropy alone, in nats, under the same normalisation; with the z-loss, if
            there is one.
        router_loss: the router's load-balancing loss before its coefficient; None for a model without one.
        positions: latents with a valid target, int64.
        expert_load: share of the latents' choices that fell on each expert [E], mean over layers; 1 / E is even.
            None for a model without a router loss.
        extra_loss: mean over extra heads of their (multi-hot) cross-entropies before their weight, each divided as the
            model's own is; None where none are trained.
    """

    loss: Tensor
    cross_entropy: Tensor
    router_loss: Tensor | None
    positions: Tensor
    expert_load: Tensor | None = None
    extra_loss: Tensor | None = None


@dataclass(frozen=True, eq=False)  # torch.compile hashes it before it has its fields
class SuperposedParts:
    """The loss of a window, for any model that can be called in three parts.

    Args:
        embedding: ids [...] to vectors [..., D]; an `nn.Embedding` is summed without holding each token's vector.
        backbone: vectors [B, L, D] and the side inputs, by name, to the last hidden states [B, L, D]. A mixture of
            experts returns (hidden states, router loss, expert load) as `superpose.core.experts.balance_loss` gives
            them.
        head: an `nn.Linear`, whose logits are then never held, or any function of hidden states to logits [B, L, V].
        weighting: of the tokens in a target bag, see `bag_weights`.
        variant: "mce", or another loss of bags from `superpose.core.ablations`, on whole logits, to see it fail.
        z_loss: see `linear_multi_hot_cross_entropy`.
        softcap: of the head's logits, see there.
        tables: further per-token vectors that the backbone takes, by name (value embeddings, embeddings of each
            layer): ids [...] to vectors [..., D]. A bag's is the mean of its tokens', as at the input.
        sides: how each further side input is folded, by name; their values come with the call.
        end_of_text: id of the token that ends documents, if latents are to attend inside their document alone: the
            backbone then gets `position_ids` [B, L] that restart where a document does, see `document_positions`.
        router_coef: factor of the router loss that the backbone returns.
        label_smoothing: see `multi_hot_cross_entropy`; it takes whole logits.
        extra_heads: that predict further ahead, see `superpose.core.extra_heads`; for training alone.

    The same object serves both phases; at bag size 1 it is ordinary next-token cross-entropy::

        loss_of = SuperposedParts(model.embedding, model.blocks, model.head)
        for step in range(schedule.total_steps):
            s = schedule.bag_size_at(step)
            loss_of(get_batch(window_length(L, s)), s).backward()

    Raises:
        ValueError: a setting is unknown or out of range, or would be ignored.
    """

    embedding: Callable[[Tensor], Tensor]
    backbone: Callable[..., Any]
    head: Callable[[Tensor], Tensor]
    weighting: Weighting | Sequence[float] = "uniform"
    variant: Variant = "mce"
    z_loss: float = 0.0
    softcap: float | None = None
    tables: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    sides: Mapping[str, Folding] = field(default_factory=dict)
    end_of_text: int | None = None
    router_coef: float | None = None
    label_smoothing: float = 0.0
    extra_heads: ExtraHeads | None = None

    def __post_init__(self) -> None:
        check_softcap(self.softcap)
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant is {self.variant!r}; choose one of {', '.join(get_args(Variant))}")
        self._check_weighting(self.weighting)
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; give a share of the target between 0 and 1")
        if self.label_smoothing and self.variant != "mce":
            raise ValueError(f"variant {self.variant!r} is not smoothed; leave label_smoothing at 0")

    def __call__(
        self,
        window: Tensor,
        bag_size: int = 1,
        mode: Mode = "full",
        normalizer: Tensor | float | None = None,
        target_mask: Tensor | None = None,
        weighting: Weighting | Sequence[float] | None = None,
        pooling: Pooling = "mean",
        extra_heads_weight: Tensor | float | None = None,
        **sides: Tensor,
    ) -> Tensor:
        """Loss of a batch of windows, a scalar in nats.

        Args:
            window: token ids [B, `window_length(L, bag_size, mode)`]; `IGNORE_INDEX` marks tokens that take part in
                nothing.
            bag_size: S, tokens in a bag; 1 is ordinary training.
            mode: see `split_window`.
            normalizer: divides the sum of the positions' losses. By default the number of positions with a valid
                target in this batch; under gradient accumulation that of the whole step, under data parallelism
                (which averages gradients) the step's positions on all ranks / number of ranks.
            target_mask: see `split_window`.
            weighting: of the tokens in a target bag of this batch; by default the object's own.
            pooling: of the tokens in an input bag, see `embed_bags`.
            extra_heads_weight: of the mean of the extra heads' losses; the window then holds as many more latents as
                there are heads, `window_length(L + n, bag_size, mode)`. None, for a window without, in evaluation.
            sides: per-token side inputs, each [B, as many as the window, ...], or without the last bag.

        Raises:
            ValueError: the window does not fit the bag size, a side input has no folding or no value, or the loss
                would leave out extra heads.
        """
        return self.output(
            window, bag_size, mode, normalizer, target_mask, weighting, pooling, extra_heads_weight, **sides
        ).loss

    def output(
        self,
        window: Tensor,
        bag_size: int = 1,
        mode: Mode = "full",
        normalizer: Tensor | float | None = None,
        target_mask: Tensor | None = None,
        weighting: Weighting | Sequence[float] | None = None,
        pooling: Pooling = "mean",
        extra_heads_weight: Tensor | float | None = None,
        **sides: Tensor,
    ) -> SuperposedOutput:
        """The loss, as calling the object gives it, and what it is made of."""
        weighting = self.weighting if weighting is None else weighting
        self._check_weighting(weighting)
        heads = self.extra_heads
        check_weight(extra_heads_weight, len(heads or ()))
        inputs, targets = split_window(window, bag_size, mode, target_mask)
        if extra_heads_weight is not None:
            assert heads is not None
            inputs, targets, ahead = split_ahead(inputs, targets, len(heads))
        hidden, router_loss, expert_load = self.hidden_states(inputs, pooling, **sides)
        if (router_loss is None) != (self.router_coef is None):
            raise ValueError("router_coef weighs the router loss that the backbone returns; give both or neither")
        targets = targets if targets.dim() == 3 else targets.unsqueeze(-1)
        weights = target_weights(targets, weighting)
        positions = count_positions(targets, weights)
        divisor = positions.clamp(min=1) if normalizer is None else normalizer
        total = self._sum_of_losses(hidden, targets, weights)
        loss = cross_entropy = total / divisor
        if router_loss is not None and self.router_coef is not None:
            # Weighted by its share of the step's positions, so that accumulation changes nothing here either.
            loss = loss + self.router_coef * router_loss * (positions / divisor)
        extra_loss = None
        if extra_heads_weight is not None:
            assert heads is not None
            ahead = ahead if ahead.dim() == 3 else ahead.unsqueeze(-1)
            extra_loss = self._sum_of_losses(heads(hidden), ahead, weights) / divisor / len(heads)
            loss = loss + extra_heads_weight * extra_loss
        return SuperposedOutput(loss, cross_entropy, router_loss, positions, expert_load, extra_loss)

    def hidden_states(
        self, inputs: Tensor, pooling: Pooling = "mean", **sides: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the backbone makes of tokens [B, L] or bags [B, L, S]: hidden states, router loss, expert load."""
        if sides.keys() != self.sides.keys():
            raise ValueError(
                f"side inputs {sorted(sides)} were given, foldings for {sorted(self.sides)}; "
                f"name each in `sides` and give it with every window"
            )
        bag_size = inputs.shape[2] if inputs.dim() == 3 else 1
        named = {name: embed_tokens(inputs, table, pooling) for name, table in self.tables.items()}
        for name, how in self.sides.items():
            named[name] = fold_side(sides[name][:, : inputs[0].numel()], bag_size, how)
        if self.end_of_text is not None:
            named["position_ids"] = document_positions(inputs, self.end_of_text)
        returned = self.backbone(embed_tokens(inputs, self.embedding, pooling), **named)
        if not isinstance(returned, tuple):
            return returned, None, None
        if len(returned) != 3:
            raise ValueError(
                f"backbone returned {len(returned)} values; give hidden states, or with router loss and load"
            )
        return returned

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, L, V] of hidden states [B, L, D], capped; the loss of an `nn.Linear` never holds them."""
        logits = self.head(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def _check_weighting(self, weighting: Weighting | Sequence[float]) -> None:
        if self.variant not in WEIGHTED and weighting != "uniform":
            raise ValueError(f"variant {self.variant!r} weighs no targets; leave weighting at 'uniform'")

    def _sum_of_losses(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Sum over positions of the loss of hidden states [B, L, D] against targets [B, L, S]."""
        # A single target is asked for by cross-entropy, whatever asks for bags.
        ablated = self.variant != "mce" and targets.shape[-1] > 1
        if isinstance(self.head, nn.Linear) and not ablated and not self.label_smoothing:
            return linear_multi_hot_cross_entropy(
                hidden,
                self.head.weight,
                targets,
                weights,
                bias=self.head.bias,
                reduction="sum",
                z_loss=self.z_loss,
                softcap=self.softcap,
            )
        logits = self.logits(hidden)
        if ablated:
            return ablated_loss(logits.flatten(0, 1), targets.flatten(0, 1), self.variant, weights, self.z_loss)
        return multi_hot_cross_entropy(
            logits, targets, weights, reduction="sum", z_loss=self.z_loss, label_smoothing=self.label_smoothing
        )
