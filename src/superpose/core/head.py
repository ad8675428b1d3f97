"""The head of a causal language model of transformers: what stands between its last hidden states and its logits.

Most families multiply by one matrix, and then the loss can take that matrix in place of the logits. Some do more: they
transform the hidden states first, scale or cap the logits. What each family does is written down here, by the
`model_type` of its configuration; a family not named is taken to do nothing more. `superpose.core.check` compares the
result with the model's own logits, so that a family that does something else is refused and not trained wrongly.

Shapes: B rows of a batch, L latents, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

SCALES: dict[str, Callable[[Any], float]] = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"), lambda model: model.logit_scale),
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "minicpm3"),
        lambda model: 1 / model.config.logits_scaling,
    ),
    "hyperclovax": lambda model: model.config.logits_scaling,
    "falcon_h1": lambda model: model.config.lm_head_multiplier,
    "inkling_text": lambda model: 1 / model.config.logits_mup_width_multiplier,
}
"""Factor of the logits, of families that have one."""

SOFTCAPS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("beam", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text"),
            *("inkling2_text", "nanochat", "vaultgemma"),
        ),
        "final_logit_softcapping",
    ),
    "recurrent_gemma": "logits_soft_cap",
    "xlstm": "output_logit_soft_cap",
}
"""Setting that holds the bound c of c tanh(logits / c), of families that have one."""


@dataclass(frozen=True)
class Head:
    """Logits are softcap(linear(scale x transform(hidden))).

    Attributes:
        linear: [D, V], as `get_output_embeddings()` gives it.
        scale: of the logits; the hidden states are multiplied by it, which is the same for a matrix without a bias.
        softcap: bound of the logits; None for none.
        transform: of hidden states [B, L, D] before the matrix; None for none.
    """

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def prepare(self, hidden: Tensor) -> Tensor:
        """What the matrix multiplies, of last hidden states [B, L, D]."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.scale == 1 else hidden * self.scale


def find_head(model: Any) -> Head:
    """The head of a causal LM, as the model and its config are now.

    Raises:
        ValueError: the model has no head, or one that is no matrix.
    """
    linear, name = model.get_output_embeddings(), type(model).__name__
    if linear is None:
        raise ValueError(f"{name} has no language-model head; give a ...ForCausalLM model")
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{name}'s head is a {type(linear).__name__} and no nn.Linear, which is not supported")
    config, kind = model.config, getattr(model.config, "model_type", "")
    scale = float(SCALES[kind](model)) if kind in SCALES else 1.0
    softcap = getattr(config, SOFTCAPS[kind], None) if kind in SOFTCAPS else None
    return Head(linear, scale, softcap, _transform(model, linear))


def _transform(model: Any, linear: nn.Linear) -> Callable[[Tensor], Tensor] | None:
    """The layers before the matrix of BERT's relatives, which have them under one of four names."""
    if (electra := getattr(model, "generator_predictions", None)) is not None:
        return electra  # type: ignore[no-any-return]
    if getattr(model, "decoder", None) is linear:  # ModernBERT
        return model.lm_head  # type: ignore[no-any-return]
    head: Any = getattr(getattr(model, "cls", None), "predictions", None) or getattr(model, "lm_head", None)
    if getattr(head, "decoder", None) is not linear:
        return None
    if hasattr(head, "transform"):  # BERT
        return head.transform  # type: ignore[no-any-return]
    if not hasattr(head, "dense"):
        return None
    activation = getattr(head, "activation", F.gelu)  # RemBERT has one, RoBERTa's is fixed
    norm = head.LayerNorm if hasattr(head, "LayerNorm") else head.layer_norm
    return lambda hidden: norm(activation(head.dense(hidden)))
