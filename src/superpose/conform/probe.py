"""A model that tells what was asked of it: which tokens a position saw, and which it was to predict.

Its embedding and its head are identity matrices, as wide as the vocabulary. So the vector that goes into position j
holds each token's share of its bag, and the gradient at its logits z is

    d loss / d z[j] = c[j] (softmax(z[j]) - y[j])

with y[j] each token's share of what the position was asked for, and c[j] how much the position counts. Token
`NEVER` is in no window, so y is 0 there, which gives c and with it y. No assumption on how a loss is computed is made.

Shapes: B rows, L latents, S bag, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEVER = 0
"""A token no window holds."""


class _ScaledEmbedding(nn.Embedding):
    """Does more than look up, as Gemma's does."""

    def __init__(self, vocab_size: int, width: int, scale: float) -> None:
        super().__init__(vocab_size, width)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


class Backbone(nn.Module):
    """Each position is a mean of those up to it and itself: causal, and no position is another's copy."""

    def __init__(self, embedding: nn.Module, gain: float) -> None:
        super().__init__()
        self.embed_tokens, self.gain = embedding, gain
        self.mix = nn.Parameter(torch.tensor(0.5))
        self.seen: list[SimpleNamespace] = []

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **ignored: Any,
    ) -> SimpleNamespace:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).unsqueeze(-1)
        ripple = torch.sin(torch.arange(x.shape[-1], dtype=x.dtype))  # no two logits are equal
        hidden = self.gain * (x + self.mix * x.cumsum(dim=1) / count + ripple)
        if hidden.requires_grad:
            hidden.retain_grad()
        self.seen.append(SimpleNamespace(embeds=x, hidden=hidden, mask=attention_mask, positions=position_ids))
        return SimpleNamespace(last_hidden_state=hidden, hidden_states=(x, hidden), router_logits=None)


class Probe(nn.Module):
    """A causal language model in float64, called as those of transformers are, or in three parts.

    As in transformers: `get_input_embeddings()`, `get_output_embeddings()`, `base_model`, `lm_head`, `config`, and
    `model(input_ids=... or inputs_embeds=...)` with `.logits`. In parts: `embedding(ids)`, `backbone(vectors)`,
    `head(hidden)`.

    Args:
        vocab_size: V.
        width: D; V if not given, with identities for embedding and head.
        gain: of the hidden states; at 0 all logits are 0, as they nearly are before training.
        scale: by which the embedding multiplies its vectors.
        bias: whether the head has one.
        softcap: of the logits, named `final_logit_softcapping` in the config; None for none.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int | None = None,
        gain: float = 1.0,
        scale: float = 1.0,
        bias: bool = False,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        width_ = vocab_size if width is None else width
        self.softcap = softcap
        self.embed_tokens: nn.Embedding = (
            nn.Embedding(vocab_size, width_) if scale == 1 else _ScaledEmbedding(vocab_size, width_, scale)
        )
        self.model = Backbone(self.embed_tokens, gain)
        self.lm_head = nn.Linear(width_, vocab_size, bias=bias)
        self.double()
        with torch.no_grad():
            if width is None:
                self.embed_tokens.weight.copy_(torch.eye(vocab_size))
                self.lm_head.weight.copy_(torch.eye(vocab_size))
            if bias:
                self.lm_head.bias.copy_(torch.linspace(-1, 1, vocab_size))
        self.config = SimpleNamespace(
            vocab_size=vocab_size,
            hidden_size=width_,
            final_logit_softcapping=softcap,
            tie_word_embeddings=False,
            max_position_embeddings=2**20,
        )

    @property
    def base_model(self) -> Backbone:
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def embedding(self, input_ids: Tensor) -> Tensor:
        """Ids [...] to vectors [..., D]."""
        vectors: Tensor = self.embed_tokens(input_ids)
        return vectors

    def backbone(self, vectors: Tensor, **sides: Any) -> Tensor:
        """Vectors [B, L, D] to hidden states [B, L, D]."""
        hidden: Tensor = self.model(inputs_embeds=vectors, **sides).last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, L, D] to logits [B, L, V], with bias and soft-cap."""
        logits: Tensor = self.lm_head(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **sides: Any
    ) -> SimpleNamespace:
        outputs: SimpleNamespace = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, **sides)
        outputs.logits = self.head(outputs.last_hidden_state)
        return outputs


@dataclass(frozen=True)
class Reading:
    """What an implementation did with a window.

    Attributes:
        value: the loss.
        saw: share of each token in what a position saw [B, L, V]; None where no model was involved.
        asked: share of each token in what a position was asked for [B, L, V]; zeros where nothing.
        counts: how much of the loss is a position's [B, L]; their sum is 1 for a mean.
        tilt: largest sum of a position's gradient over the vocabulary, 0 for whatever has one softmax.
        logits: [B, L, V].
    """

    value: float
    saw: Tensor | None
    asked: Tensor
    counts: Tensor
    tilt: float
    logits: Tensor


def read_step(step: Callable[..., Any], window: Tensor, bag_size: int, vocab_size: int, **arguments: Any) -> Reading:
    """Runs a `step` on the probe.

    Raises:
        ValueError: it did not call the model's backbone exactly once, or returned no scalar.
    """
    model = Probe(vocab_size)
    loss = scalar(step(model, window, bag_size, **arguments), "step")
    (seen,) = calls(model)
    if loss.requires_grad:
        loss.backward()
    hidden = seen.hidden
    gradient = torch.zeros_like(hidden) if hidden.grad is None else hidden.grad
    return _reading(loss, seen.embeds.detach(), hidden.detach(), gradient)


def read_loss(loss_of: Callable[..., Any], targets: Tensor, vocab_size: int, **arguments: Any) -> Reading:
    """Runs a `loss` on logits that are told apart, for targets [B, L, S].

    Raises:
        ValueError: it returned no scalar.
    """
    logits = torch.sin(torch.arange(targets.shape[0] * targets.shape[1] * vocab_size, dtype=torch.float64))
    logits = logits.view(*targets.shape[:2], vocab_size).requires_grad_()
    loss = scalar(loss_of(logits, targets, **arguments), "loss")
    if loss.requires_grad:
        loss.backward()
    gradient = torch.zeros_like(logits) if logits.grad is None else logits.grad
    return _reading(loss, None, logits.detach(), gradient)


def scalar(loss: Any, role: str) -> Tensor:
    """A loss as a number with a gradient."""
    value = getattr(loss, "loss", loss)  # transformers' outputs
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"{role} returned {_kind(value)}; expected a loss, one number")
    return value.reshape(())


def value_of(loss: Any, role: str) -> float:
    """A loss as a number."""
    return float(scalar(loss, role).detach())


def calls(model: Probe) -> list[SimpleNamespace]:
    """The only call of the backbone, in a list."""
    if len(model.model.seen) != 1:
        raise ValueError(f"step called the model's backbone {len(model.model.seen)} times; expected once")
    return model.model.seen


def _reading(loss: Tensor, saw: Tensor | None, logits: Tensor, gradient: Tensor) -> Reading:
    probabilities = logits.softmax(dim=-1)
    counts = gradient[..., NEVER] / probabilities[..., NEVER]
    asked = probabilities - gradient / counts.masked_fill(counts == 0, 1).unsqueeze(-1)
    asked = asked.masked_fill((counts == 0).unsqueeze(-1), 0)
    return Reading(float(loss.detach()), saw, asked, counts, float(gradient.sum(dim=-1).abs().max()), logits)


def padded(asked: Tensor, latents: int) -> Tensor:
    """Shares [B, at least `latents`, V], with positions that are asked for nothing where targets end early."""
    return F.pad(asked, (0, 0, 0, max(0, latents - asked.shape[1])))


def _kind(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
