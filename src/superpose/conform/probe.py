"""A model that tells what was asked of it: which tokens a position saw, and which it was to predict.

Its embedding and its head are identity matrices, as wide as the vocabulary. So the vector that goes into position j
holds each token's share of its bag, and the gradient at its logits z is

    d loss / d z[j] = c[j] (softmax(z[j]) - y[j])

with y[j] each token's share of what the position was asked for, and c[j] how much the position counts. Token
`NEVER` is in no window, so y is 0 there, which gives c and with it y. No assumption on how a loss is computed is made.

Shapes: B rows, L latents, S bag, V vocabulary, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from superpose.conform.implementation import Implementation, NotCheckedError, accepts
from superpose.core.fold import IGNORE_INDEX

VOCAB_SIZE = 64
"""Enough for the windows of all checks."""
NEVER = 0
"""A token no window holds."""
NOISE = 1e-6
"""Of shares and weights that are computed in float64."""


class _ScaledEmbedding(nn.Embedding):
    """Does more than look up, as Gemma's does."""

    scale: Tensor

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
        self.embed_tokens = (nn.Embedding if scale == 1 else _ScaledEmbedding)(vocab_size, width_)
        self.embed_tokens.scale = torch.tensor(scale)
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
            model_type="gemma2",  # a family that caps
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
    """What a step did with a window.

    Attributes:
        value: the loss.
        saw: share of each token in what a position saw [B, L, V].
        asked: share of each token in what a position was asked for [B, L, V]; zeros where nothing.
        counts: how much of the loss is a position's [B, L]; their sum is 1 for a mean.
        tilt: largest sum of a position's gradient over the vocabulary, 0 for whatever has one softmax.
        hidden: [B, L, V]; with a plain head, which is an identity, they are the logits.
        mask, positions: what the body was given.
    """

    value: float
    saw: Tensor
    asked: Tensor
    counts: Tensor
    tilt: float
    hidden: Tensor
    mask: Tensor | None
    positions: Tensor | None


def read_step(
    step: Callable[..., Any], window: Tensor, bag_size: int, model: Probe | None = None, **arguments: Any
) -> Reading:
    """Runs a step on the probe, a plain one if none is given; it has to call its backbone once and return a scalar."""
    model = model or Probe(VOCAB_SIZE)
    loss = scalar(step(model, window, bag_size, **arguments), "step")
    seen = call_of(model)
    if loss.requires_grad:
        loss.backward()
    hidden = seen.hidden.detach()
    gradient = torch.zeros_like(hidden) if seen.hidden.grad is None else seen.hidden.grad
    probabilities = hidden.softmax(dim=-1)
    counts = gradient[..., NEVER] / probabilities[..., NEVER]
    asked = probabilities - gradient / counts.masked_fill(counts == 0, 1).unsqueeze(-1)
    asked = asked.masked_fill((counts == 0).unsqueeze(-1), 0)
    tilt = float(gradient.sum(dim=-1).abs().max())
    return Reading(value_of(loss), seen.embeds.detach(), asked, counts, tilt, hidden, seen.mask, seen.positions)


def observe(implementation: Implementation, window: Tensor, bag_size: int, **arguments: Any) -> Reading:
    """What an implementation makes of a window."""
    reading = read_step(step_of(implementation), window, bag_size, **arguments)
    if reading.tilt > NOISE:  # the gradient is not that of a softmax, so it does not tell what was asked for
        raise NotCheckedError("the loss is no cross-entropy, see error 2")
    return reading


def observe_padded(implementation: Implementation, window: Tensor, padding: Tensor, bag_size: int) -> Reading:
    """`observe` with padding where `padding` [as the window] holds, told by a mask if the step takes one."""
    if accepts(implementation.step, "attention_mask"):
        return observe(implementation, window, bag_size, attention_mask=(~padding).long())
    try:
        return observe(implementation, window.masked_fill(padding, IGNORE_INDEX), bag_size)
    except (IndexError, RuntimeError) as error:
        if implementation.step is None:
            raise
        said = f"step takes no attention_mask, and IGNORE_INDEX in its window raises {type(error).__name__}"
        raise NotCheckedError(f"padding: {said}") from None


def step_of(implementation: Implementation) -> Callable[..., Any]:
    """The step; of fold and loss, one that puts a model between them."""

    def step(model: Probe, window: Tensor, bag_size: int, **arguments: Any) -> Tensor:
        inputs, targets = folded(implementation, window, bag_size)
        valid = (inputs != IGNORE_INDEX).unsqueeze(-1)
        vectors = (model.embedding(inputs.where(valid[..., 0], NEVER)) * valid).sum(dim=2) / valid.sum(2).clamp(min=1)
        logits = model.head(model.backbone(vectors))[:, : targets.shape[1]]
        return scalar(implementation.need("loss")(logits, targets, **arguments), "loss")

    return implementation.step or step


def folded(implementation: Implementation, window: Tensor, bag_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, L, S] of the implementation's fold, also at bag size 1; of another shape a ValueError."""
    bags = []
    for name, part in zip(("inputs", "targets"), implementation.need("fold")(window, bag_size), strict=True):
        single = bag_size == 1 and isinstance(part, Tensor) and part.dim() == 2
        values = part.unsqueeze(-1) if single else part
        if not isinstance(values, Tensor) or values.dim() != 3 or values.shape[::2] != (len(window), bag_size):
            shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"fold returned {name} {shape}; expected [{len(window)}, latents, {bag_size}]")
        bags.append(values)
    inputs, targets = bags
    if targets.shape[1] > inputs.shape[1]:
        raise ValueError(f"fold returned {targets.shape[1]} bags of targets for {inputs.shape[1]} bags of inputs")
    return inputs, targets


def window_of(rows: int, latents: int, bag_size: int) -> Tensor:
    """Distinct tokens from 1 on, so that a token names its place: [rows, S x (L + 1)]."""
    length = bag_size * (latents + 1)
    return 1 + torch.arange(rows * length).view(rows, length)


def scalar(loss: Any, role: str) -> Tensor:
    """A loss as a number with a gradient."""
    value = getattr(loss, "loss", loss)  # transformers' outputs
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{role} returned {kind}; expected a loss, one number")
    return value.reshape(())


def value_of(loss: Any, role: str = "step") -> float:
    """A loss as a number."""
    return float(scalar(loss, role).detach())


def call_of(model: Probe) -> SimpleNamespace:
    """The only call of the model's backbone: its `embeds`, `hidden`, `mask` and `positions`."""
    if len(model.model.seen) != 1:
        raise ValueError(f"step called the model's backbone {len(model.model.seen)} times; expected once")
    return model.model.seen[0]
