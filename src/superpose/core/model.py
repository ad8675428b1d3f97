"""Puts the pieces together for Hugging Face causal language models: window -> fold -> embed -> model -> loss.

The model is used, never changed: bags enter as `inputs_embeds`, the last hidden states leave before the head,
and the head's weight goes into the loss. What is saved afterwards is the ordinary model it always was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from superpose.core.ablations import Ablation, ablated_loss
from superpose.core.embed import embed_tokens
from superpose.core.experts import balance_loss
from superpose.core.fold import IGNORE_INDEX, Mode, document_positions, fold_mask, split_window
from superpose.core.linear_loss import linear_multi_hot_cross_entropy
from superpose.core.loss import Variant, Weighting, count_rows, target_weights


class SuperposedOutput(NamedTuple):
    """What a forward pass of `SuperposedLM` returns.

    Attributes:
        loss: what to call `backward()` on: cross-entropy and, for a mixture of experts, its router loss.
        cross_entropy: the (multi-hot) cross-entropy alone, in nats, under the same normalisation.
        router_loss: the router's load-balancing loss before its coefficient; None for a model without one.
        rows: latents with a valid target, int64.
        expert_load: share of the latents' choices that fell on each expert [E], mean over layers; 1 / E is even.
            None for a model without a router loss.
    """

    loss: Tensor
    cross_entropy: Tensor
    router_loss: Tensor | None
    rows: Tensor
    expert_load: Tensor | None = None


class SuperposedLM(nn.Module):
    """Any Hugging Face causal LM, computing its loss from a window of tokens and a bag size.

    Args:
        model: a causal LM whose logits are its head applied to its last hidden states, scaled and soft-capped if
            its config says so; `check()` verifies it.
        weighting: of the tokens in a target bag, see `bag_weights`.
        variant: "mce", or "mce_alt" for the bag's total probability, see `superpose.core.loss`; the losses of
            `superpose.core.ablations`, to see them fail.
        end_of_text: id of the token that ends documents, if latents are to attend inside their document alone, with
            position ids that restart there (`document_positions`); by default they attend to all of their row.
            `check()` verifies that the model does so.
        group: data-parallel ranks, for a mixture of experts, whose load is then counted over all of them.

    The same object serves both phases; at bag size 1 it is the model's ordinary next-token loss::

        lm = SuperposedLM(model)
        for step, window in enumerate(windows):
            lm(window, schedule.bag_size_at(step)).loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        weighting: Weighting | Sequence[float] = "uniform",
        variant: Variant | Ablation = "mce",
        end_of_text: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.weighting = weighting
        self.variant = variant
        self.end_of_text = end_of_text
        self.group = group
        if model.get_output_embeddings() is None:  # type: ignore[operator]  # of transformers' base class
            raise ValueError(f"{type(model).__name__} has no language-model head; give a ...ForCausalLM model")

    def forward(
        self,
        window: Tensor,
        bag_size: int = 1,
        mode: Mode = "full",
        attention_mask: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> SuperposedOutput:
        """Loss of a batch of windows.

        Args:
            window: token ids [B, `window_length(L, bag_size, mode)`]; `IGNORE_INDEX` marks tokens that take
                part in nothing.
            bag_size: S, tokens in a bag; 1 is ordinary training.
            mode: see `split_window`.
            attention_mask: [B, same length], 0 for padding; needed only where padding comes before text, since
                a causal model never looks ahead. Folded by bag: a bag with any real token is attended to.
            normalizer: divides the sum of the rows' losses. By default the number of rows with a valid
                target in this batch; under gradient accumulation that of the whole step, under data
                parallelism (which averages gradients) the step's rows on all ranks / number of ranks.

        Raises:
            ValueError: the window does not fit the bag size, or a mask is given where documents are told apart.
        """
        if attention_mask is not None:
            if self.end_of_text is not None:
                raise ValueError("attention inside documents takes no attention_mask; mark padding with IGNORE_INDEX")
            window = window.masked_fill(attention_mask == 0, IGNORE_INDEX)
        inputs, targets = split_window(window, bag_size, mode)
        if attention_mask is not None:
            attention_mask = attention_mask[:, : inputs[0].numel()]
            if inputs.dim() == 3:
                attention_mask = fold_mask(attention_mask, bag_size)
        hidden, router_loss, expert_load = self._backbone(inputs, attention_mask)

        head, config = self.model.get_output_embeddings(), self.model.config
        # Cohere multiplies its logits, Granite divides them; Gemma caps them.
        scale = getattr(config, "logit_scale", 1) / getattr(config, "logits_scaling", 1)
        targets = targets if targets.dim() == 3 else targets.unsqueeze(-1)
        weights = target_weights(targets, self.weighting)
        rows = count_rows(targets, weights)
        divisor = rows.clamp(min=1) if normalizer is None else normalizer
        hidden = hidden if scale == 1 else hidden * scale
        softcap = getattr(config, "final_logit_softcapping", None)
        # A single target is asked for by cross-entropy, whatever asks for bags.
        variant = self.variant if targets.shape[-1] > 1 else "mce"
        if variant == "hinge" or variant == "bce":
            if softcap is not None:
                raise ValueError(f"variant {variant!r} knows no soft-capped logits; choose 'mce'")
            total = ablated_loss(head(hidden).flatten(0, 1), targets.flatten(0, 1), variant)
        else:
            total = linear_multi_hot_cross_entropy(
                hidden,
                head.weight,
                targets,
                weights,
                bias=getattr(head, "bias", None),
                reduction="sum",
                variant=variant,
                softcap=softcap,
            )
        loss = cross_entropy = total / divisor
        if router_loss is not None:
            # Weighted by its share of the step's rows, so that accumulation changes nothing here either.
            loss = loss + self.model.router_aux_loss_coef * router_loss * (rows / divisor)
        return SuperposedOutput(loss, cross_entropy, router_loss, rows, expert_load)

    def _backbone(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Last hidden states [B, L, D] of tokens [B, L] or bags [B, L, S]; of experts their loss and their load [E]."""
        arguments: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": False}
        if self.end_of_text is not None:
            # Without a mask, transformers takes position ids that restart for rows of several documents.
            arguments["position_ids"] = document_positions(inputs, self.end_of_text)
        routed = bool(getattr(self.model.config, "output_router_logits", False))
        if routed:
            arguments["output_router_logits"] = True
        outputs = self.model.base_model(
            inputs_embeds=embed_tokens(inputs, self.model.get_input_embeddings()), **arguments
        )
        if not routed:
            return outputs.last_hidden_state, None, None
        chosen = self.model.num_experts_per_tok
        return outputs.last_hidden_state, *balance_loss(outputs.router_logits, chosen, attention_mask, self.group)

    @torch.no_grad()
    def check(self) -> None:
        """Compares this object's next-token loss with the model's own logits on a few tokens.

        Some families do more to their logits than their config's usual names say; training them here would
        silently optimise something else. Where documents are told apart, it is also checked that a document's
        hidden states are those it has alone.

        Raises:
            ValueError: one of them differs.
        """
        training = self.training
        self.eval()
        weight = self.model.get_input_embeddings().weight
        latents = min(8, getattr(self.model.config, "max_position_embeddings", 8))
        window = (torch.arange(latents + 1, device=weight.device) * 7919 % weight.shape[0]).unsqueeze(0)
        if self.end_of_text is not None:
            window = torch.where(window == self.end_of_text, (window + 1) % weight.shape[0], window)
            self._check_documents(window[:, :latents], self.end_of_text)
        ours = self(window)
        outputs = self.model(input_ids=window[:, :-1], use_cache=False)
        theirs = F.cross_entropy(outputs.logits.float().flatten(0, 1), window[0, 1:])
        self.train(training)
        if not torch.isclose(ours.cross_entropy.float(), theirs, rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"{type(self.model).__name__} does more than its head to its logits, which is not supported: "
                f"its own loss is {theirs:.3f}, that of its head's logits {ours.cross_entropy:.3f}"
            )
        if ours.router_loss is None:
            return
        # Each family brings its own load-balancing loss; all known ones are this one.
        balance = getattr(sys.modules[type(self.model).__module__], "load_balancing_loss_func", None)
        if balance is None:
            raise ValueError(f"{type(self.model).__name__} asks for router logits but defines no load-balancing loss")
        expected = balance(outputs.router_logits, self.model.num_experts, self.model.num_experts_per_tok, None)
        if not torch.isclose(ours.router_loss.float(), expected.float(), rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"{type(self.model).__name__} balances its experts by a loss that is not supported: "
                f"its own is {expected:.3f}, ours {ours.router_loss:.3f}"
            )

    def _check_documents(self, row: Tensor, end_of_text: int) -> None:
        """Puts an end of text into the middle of a row [1, L]."""
        middle = row.shape[1] // 2
        row = row.clone()
        row[:, middle - 1] = end_of_text
        together, *_ = self._backbone(row, None)
        alone, *_ = self._backbone(row[:, middle:], None)
        if not torch.allclose(together[:, middle:].float(), alone.float(), rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"{type(self.model).__name__} with attention {self.model.config._attn_implementation!r} does not keep "
                f"attention inside documents; choose another implementation, or attention over the row"
            )
