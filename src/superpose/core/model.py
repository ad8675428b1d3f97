"""Hugging Face causal language models in three parts: embedding, backbone and head, found by their usual names.

The model is used, never changed: bags enter as `inputs_embeds`, the last hidden states leave before the head,
and the head's weight goes into the loss. What is saved afterwards is the ordinary model it always was.

Shapes: B rows of a batch, L latents, D width, E experts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from superpose.core.ablations import Variant
from superpose.core.experts import balance_loss
from superpose.core.fold import IGNORE_INDEX, Mode
from superpose.core.loss import Weighting
from superpose.core.parts import SuperposedOutput, SuperposedParts


class SuperposedLM(nn.Module):
    """Any Hugging Face causal LM, computing its loss from a window of tokens and a bag size.

    Args:
        model: a causal LM whose logits are its head applied to its last hidden states, scaled and soft-capped if
            its config says so; `check()` verifies it.
        weighting, variant, z_loss: as in `superpose.SuperposedParts`.
        end_of_text: id of the token that ends documents, if latents are to attend inside their document alone, with
            position ids that restart there (`document_positions`); by default they attend to all of their row.
            `check()` verifies that the model does so.
        group: data-parallel ranks, for a mixture of experts, whose load is then counted over all of them.

    The same object serves both phases; at bag size 1 it is the model's ordinary next-token loss::

        lm = SuperposedLM(model)
        for step, window in enumerate(windows):
            lm(window, schedule.bag_size_at(step)).loss.backward()

    Raises:
        ValueError: the model has no head, or a setting is unknown or would be ignored.
    """

    def __init__(
        self,
        model: nn.Module,
        weighting: Weighting | Sequence[float] = "uniform",
        variant: Variant = "mce",
        end_of_text: int | None = None,
        group: dist.ProcessGroup | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.weighting = weighting
        self.variant = variant
        self.end_of_text = end_of_text
        self.group = group
        self.z_loss = z_loss
        if model.get_output_embeddings() is None:  # type: ignore[operator]  # of transformers' base class
            raise ValueError(f"{type(model).__name__} has no language-model head; give a ...ForCausalLM model")
        self.parts()  # says at once what does not fit

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
            window, bag_size, mode, normalizer: as in `superpose.SuperposedParts`.
            attention_mask: [B, as many as the window], 0 for padding; needed only where padding comes before text,
                since a causal model never looks ahead. Folded by bag: a bag with any real token is attended to.

        Raises:
            ValueError: the window does not fit the bag size, or a mask is given where documents are told apart.
        """
        if attention_mask is None:
            return self.parts().output(window, bag_size, mode, normalizer)
        if self.end_of_text is not None:
            raise ValueError("attention inside documents takes no attention_mask; mark padding with IGNORE_INDEX")
        window = window.masked_fill(attention_mask == 0, IGNORE_INDEX)
        parts = replace(self.parts(), sides={"attention_mask": "any"})
        return parts.output(window, bag_size, mode, normalizer, attention_mask=attention_mask)

    def parts(self) -> SuperposedParts:
        """The model in three parts, as it and its config are now."""
        return SuperposedParts(
            self.model.get_input_embeddings(),
            self._backbone,
            self.model.get_output_embeddings(),
            self.weighting,
            self.variant,
            self.z_loss,
            getattr(self.model.config, "final_logit_softcapping", None),
            end_of_text=self.end_of_text,
            router_coef=self.model.router_aux_loss_coef if self._routed else None,
        )

    @property
    def _routed(self) -> bool:
        return bool(getattr(self.model.config, "output_router_logits", False))

    def _backbone(
        self, vectors: Tensor, attention_mask: Tensor | None = None, **position_ids: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Last hidden states [B, L, D] of vectors [B, L, D]; of experts their loss [] and their load [E]."""
        config, routed = self.model.config, {"output_router_logits": True} if self._routed else {}
        # Without a mask, transformers takes position ids that restart for rows of several documents.
        outputs = self.model.base_model(
            inputs_embeds=vectors, attention_mask=attention_mask, use_cache=False, **position_ids, **routed
        )
        hidden = outputs.last_hidden_state
        # Cohere multiplies its logits, Granite divides them.
        scale = getattr(config, "logit_scale", 1) / getattr(config, "logits_scaling", 1)
        hidden = hidden if scale == 1 else hidden * scale
        if not routed:
            return hidden, None, None
        chosen = self.model.num_experts_per_tok
        return hidden, *balance_loss(outputs.router_logits, chosen, attention_mask, self.group)

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
        ours = replace(self.parts(), z_loss=0.0).output(window)
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
        together, *_ = self.parts().hidden_states(row)
        alone, *_ = self.parts().hidden_states(row[:, middle:])
        if not torch.allclose(together[:, middle:].float(), alone.float(), rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"{type(self.model).__name__} with attention {self.model.config._attn_implementation!r} does not keep "
                f"attention inside documents; choose another implementation, or attention over the row"
            )
