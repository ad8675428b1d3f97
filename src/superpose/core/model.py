"""Hugging Face causal language models in three parts: embedding, backbone and head, found by their usual names.

The model is used, never changed: bags enter as `inputs_embeds`, the last hidden states leave before the head,
and the head's weight goes into the loss. What is saved afterwards is the ordinary model it always was.

Shapes: B rows of a batch, L latents, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from superpose.core.ablations import Variant
from superpose.core.embed import Pooling
from superpose.core.experts import BiasBalance, balance_loss, router_coefficient
from superpose.core.extra_heads import ExtraHeads
from superpose.core.fold import IGNORE_INDEX, Mode
from superpose.core.head import Head, find_head
from superpose.core.loss import Weighting
from superpose.core.parts import SuperposedOutput, SuperposedParts
from superpose.core.sharding import is_sharded

_Result = TypeVar("_Result")


class SuperposedLM(nn.Module):
    """Any Hugging Face causal LM, computing its loss from a window of tokens and a bag size.

    Args:
        model: a causal LM of transformers. What its family does around its head, its experts and its side tables is
            found by its configuration; `check()` verifies that nothing is missed.
        weighting, variant, z_loss, label_smoothing: as in `superpose.SuperposedParts`.
        end_of_text: id of the token that ends documents, if latents are to attend inside their document alone, with
            position ids that restart there (`document_positions`); by default they attend to all of their row.
            `check()` verifies that the model does so.
        group: data-parallel ranks, for a mixture of experts, whose load is then counted over all of them.
        extra_heads: how many heads predict further ahead, see `superpose.core.extra_heads`. Their weights are
            parameters of this object and not of the model: give an optimizer `lm.parameters()`, and drop them by
            `lm.set_extra_heads(0)` where the phase ends that trains them.

    The same object serves both phases; at bag size 1 it is the model's ordinary next-token loss::

        lm = SuperposedLM(model)
        lm.check()
        for step, window in enumerate(windows):
            lm(window, schedule.bag_size_at(step)).loss.backward()
            optimizer.step()
            lm.balance()

    Raises:
        ValueError: the model has no head or no decoder of its own, or reads more than text; or a setting is unknown or
            would be ignored.
    """

    def __init__(
        self,
        model: nn.Module,
        weighting: Weighting | Sequence[float] = "uniform",
        variant: Variant = "mce",
        end_of_text: int | None = None,
        group: dist.ProcessGroup | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
        extra_heads: int = 0,
    ) -> None:
        super().__init__()
        _check_wrapping(model)
        self.model: Any = model
        self.weighting = weighting
        self.variant = variant
        self.end_of_text = end_of_text
        self.group = group
        self.z_loss = z_loss
        text: Any = getattr(model.config, "get_text_config", lambda **_: model.config)(decoder=True)
        if getattr(text, "model_type", None) != getattr(model.config, "model_type", None):
            raise ValueError(
                f"{type(model).__name__} reads more than text; train its text model alone, of type {text.model_type!r}"
            )
        self.label_smoothing = label_smoothing
        self.router_coef = router_coefficient(model)
        self.biases = BiasBalance(model, group)
        self.extra_heads = ExtraHeads(extra_heads, find_head(model).linear.weight)
        self.parts()  # says at once what does not fit
        self.decoder()

    def forward(
        self,
        window: Tensor,
        bag_size: int = 1,
        mode: Mode = "full",
        attention_mask: Tensor | None = None,
        normalizer: Tensor | float | None = None,
        target_mask: Tensor | None = None,
        weighting: Weighting | Sequence[float] | None = None,
        pooling: Pooling = "mean",
        extra_heads_weight: Tensor | float | None = None,
    ) -> SuperposedOutput:
        """Loss of a batch of windows.

        Args:
            window, bag_size, mode, normalizer, target_mask, weighting, pooling, extra_heads_weight: as in
                `superpose.SuperposedParts`.
            attention_mask: [B, as many as the window], 0 for padding; needed only where padding comes before text,
                since a causal model never looks ahead. Folded by bag: a bag with any real token is attended to.

        Raises:
            ValueError: the window does not fit the bag size, or a mask is given where documents are told apart.
        """
        sides: dict[str, Tensor] = {}
        if attention_mask is not None:
            if self.end_of_text is not None:
                raise ValueError("attention inside documents takes no attention_mask; mark padding with IGNORE_INDEX")
            window = window.masked_fill(attention_mask == 0, IGNORE_INDEX)
            sides["attention_mask"] = attention_mask
        if self.router_coef is not None or self.biases:
            sides["counted"] = window != IGNORE_INDEX  # latents that hold nothing are no load
        parts = replace(self.parts(), sides=dict.fromkeys(sides, "any"))
        units: tuple[Any, ...] = (parts.embedding, parts.head)
        for part in filter(is_sharded, units):  # the loss takes their weights and does not call them
            part.unshard()
        return parts.output(
            window, bag_size, mode, normalizer, target_mask, weighting, pooling, extra_heads_weight, **sides
        )

    def set_extra_heads(self, count: int) -> None:
        """So many extra heads from now on: those there are stay as far as they go, and fresh ones join them."""
        self.extra_heads = self.extra_heads.resized(count, find_head(self.model).linear.weight)

    def balance(self) -> None:
        """Moves the biases of routers that are balanced by one, after an optimizer step; others have none to move.

        A loss balances the rest, and that is part of the loss already. On all ranks of `group` together.
        """
        self.biases.step()

    @property
    def unbalanced(self) -> bool:
        """Whether the model has experts, and nothing that its family keeps their load even by."""
        experts = any(name.endswith(".experts") for name, _ in self.model.named_modules())
        return experts and self.router_coef is None and not self.biases

    def check(self) -> list[str]:
        """See `superpose.core.check.check_model`."""
        from superpose.core.check import check_model

        return check_model(self)

    def within(self, call: Callable[[], _Result]) -> _Result:
        """What `call` returns; as a forward pass of this module to FSDP2, which gathers the weights for it."""
        return call()

    def parts(self) -> SuperposedParts:
        """The model in three parts, as it and its config are now."""
        head = find_head(self.model)
        return SuperposedParts(
            self.model.get_input_embeddings(),
            partial(self._backbone, head),
            head.linear,
            self.weighting,
            self.variant,
            self.z_loss,
            head.softcap,
            tables=self._tables(),
            end_of_text=self.end_of_text,
            router_coef=self.router_coef,
            label_smoothing=self.label_smoothing,
            extra_heads=self.extra_heads if len(self.extra_heads) else None,
        )

    def decoder(self) -> Any:
        """The model without its head.

        Raises:
            ValueError: it has none that can be called alone.
        """
        base = self.model.base_model
        if base is self.model:  # where the family's prefix names another part
            base = getattr(self.model, "model", None)
        if base is None:
            raise ValueError(f"{type(self.model).__name__} has no decoder apart from its head, which is not supported")
        return base

    def _tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Per-layer embeddings (Gemma 3n, Gemma 4): ids [...] to the vectors of all layers, side by side [..., D]."""
        lookup = getattr(self.decoder(), "get_per_layer_inputs", None)
        if lookup is None or not getattr(self.model.config, "hidden_size_per_layer_input", 0):
            return {}
        return {"per_layer_inputs": lambda ids: lookup(ids).flatten(-2)}

    def _backbone(
        self,
        head: Head,
        vectors: Tensor,
        attention_mask: Tensor | None = None,
        counted: Tensor | None = None,
        **named: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the head multiplies [B, L, D] of vectors [B, L, D]; of experts their loss [] and their load [E]."""
        if (layers := named.get("per_layer_inputs")) is not None:
            width = self.model.config.hidden_size_per_layer_input
            named["per_layer_inputs"] = layers.unflatten(-1, (-1, width))
        routed: dict[str, Any] = {} if self.router_coef is None else {"output_router_logits": True}
        training = torch.is_grad_enabled() and self.training and self.biases
        with self.biases.counting(counted) if training else nullcontext():
            # Without a mask, transformers takes position ids that restart for rows of several documents.
            outputs = self.decoder()(
                inputs_embeds=vectors, attention_mask=attention_mask, use_cache=False, **named, **routed
            )
        hidden = head.prepare(outputs.last_hidden_state)
        if self.router_coef is not None:
            chosen = self.model.num_experts_per_tok
            return hidden, *balance_loss(outputs.router_logits, chosen, counted, self.group)
        return hidden, None, self.biases.load() if training else None


def _check_wrapping(model: nn.Module) -> None:
    """Refuses what acts in the model's own forward pass alone, which the loss does not call."""
    name = type(getattr(model, "_orig_mod", model)).__name__.removeprefix("FSDP")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            f"{name} is compiled, but the loss calls its parts, which are not; give the model itself and compile "
            f"SuperposedLM, or the model's blocks"
        )
    if is_sharded(model):
        raise ValueError(
            f"{name} is sharded as a whole, but the loss calls its parts; in place of fully_shard(model), call "
            f"fully_shard(SuperposedLM(model))"
        )
