"""A small causal language model for steps that bring none, and for a loss alone."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _ScaledEmbedding(nn.Embedding):
    """Does more than look up, as Gemma's does."""

    scale = 1.0

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


class Backbone(nn.Module):
    """A position is its input and a mean of those before it that the mask leaves; causal, and positions differ."""

    def __init__(self, embedding: nn.Module, width: int) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.mix = nn.Linear(width, width)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **ignored: Any,
    ) -> SimpleNamespace:
        x = (self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds).to(self.mix.weight.dtype)
        length = x.shape[1]
        places = torch.arange(length) if position_ids is None else position_ids
        x = x + 0.1 * torch.sin(places.unsqueeze(-1) * (1 + torch.arange(x.shape[-1])) / 3).to(x.dtype)
        seen = torch.ones(length, length, dtype=x.dtype).tril().expand(len(x), -1, -1)
        if attention_mask is not None:
            seen = seen * attention_mask.to(x.dtype).unsqueeze(1)
        mean = seen @ torch.tanh(self.mix(x)) / seen.sum(-1, keepdim=True).clamp(min=1)
        hidden = x + mean
        return SimpleNamespace(last_hidden_state=hidden, hidden_states=(x, hidden), router_logits=None)


class Probe(nn.Module):
    """Called as the causal language models of transformers are, or in three parts; float64.

    As in transformers: `get_input_embeddings()`, `get_output_embeddings()`, `base_model`, `lm_head`, `config`, and
    `model(input_ids=... or inputs_embeds=..., labels=...)` with `.logits` and `.loss`. In parts: `embedding(ids)`,
    `backbone(vectors)`, `head(hidden)`.

    Args:
        vocab_size: V.
        width: D.
        scale: by which the embedding multiplies its vectors.
        bias: whether the head has one.
        softcap: of the logits, named `final_logit_softcapping` in the config; None for none.
    """

    def __init__(
        self,
        vocab_size: int = 64,
        width: int = 24,
        scale: float = 1.0,
        bias: bool = False,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.softcap = softcap
        self.embed_tokens = (nn.Embedding if scale == 1 else _ScaledEmbedding)(vocab_size, width)
        if isinstance(self.embed_tokens, _ScaledEmbedding):
            self.embed_tokens.scale = scale
        self.model = Backbone(self.embed_tokens, width)
        self.lm_head = nn.Linear(width, vocab_size, bias=bias)
        self.double()
        self.config = SimpleNamespace(
            vocab_size=vocab_size,
            hidden_size=width,
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
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **sides: Any,
    ) -> SimpleNamespace:
        outputs: SimpleNamespace = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, **sides)
        outputs.logits, outputs.loss = self.head(outputs.last_hidden_state), None
        if labels is not None:
            outputs.loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return outputs
