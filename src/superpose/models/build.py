"""Models from transformers' own configurations: superpose defines none."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from superpose.core.accounting import flops_per_latent
from superpose.errors import UserError

_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}


class ModelArgs(BaseModel):
    """An architecture of transformers and the settings of its configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "llama"
    """The `model_type` of a causal language model in transformers: llama, qwen3, qwen3_moe, gpt2, ..."""
    config: dict[str, Any] = Field(default_factory=_TINY.copy)
    """Settings of that configuration. Vocabulary, context length and end of text are set by the run."""


def build_config(args: ModelArgs, vocab_size: int, latents: int, end_of_text: int) -> Any:
    """The transformers configuration of a run's model.

    Raises:
        UserError: transformers knows no such model or setting, or refuses a value.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known_models = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if args.architecture not in known_models:
        raise UserError(
            f"model.architecture is {args.architecture!r}, which is no causal language model of transformers"
            f"{did_you_mean(args.architecture, known_models)}"
        )
    for taken in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
        if taken in args.config:
            raise UserError(f"model.config.{taken} is set by the run's tokenizer; leave it out of the recipe")
    settings = {"max_position_embeddings": latents, **args.config}
    special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": None}
    try:
        config: Any = AutoConfig.for_model(args.architecture, vocab_size=vocab_size, **special, **settings)
    except Exception as error:  # transformers raises a class of its own for each kind of bad value
        raise UserError(f"model.config: {_last_line(error)}") from None
    known = {field.name for field in fields(config)} | set(config.attribute_map) | {"attn_implementation"}
    for name in args.config:
        if name not in known:
            raise UserError(
                f"model.config.{name} is no setting of {args.architecture}{did_you_mean(name, sorted(known))}"
            )
    if config.max_position_embeddings < latents:
        raise UserError(
            f"model.config.max_position_embeddings is {config.max_position_embeddings} but train.latents is {latents}; "
            f"raise the one or lower the other"
        )
    return config


def build_model(config: Any, device: str | torch.device = "cpu") -> nn.Module:
    """A freshly initialised causal LM; on the "meta" device its shapes only, in no time.

    Raises:
        UserError: the configuration's values do not fit together.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device(device):
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"model.config does not make a {config.model_type} model: {_last_line(error)}") from None
    return model


def model_flops_per_latent(model: nn.Module, latents: int) -> int:
    """Forward and backward FLOPs of one position in a row of `latents`, see `flops_per_latent`."""
    config: Any = model.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return flops_per_latent(matmul_parameters(model), config.num_hidden_layers, heads * head_dim, latents)


def matmul_parameters(model: nn.Module) -> int:
    """Weights one position is multiplied with: matrices and the head, no look-up tables, of experts the active ones."""
    config: Any = model.config
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings().weight  # type: ignore[operator]  # of transformers' base class
    count: int = head.numel()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or parameter is head or id(parameter) in tables:
            continue
        if ".experts." in name:
            experts = getattr(config, "num_local_experts", None) or config.num_experts
            count += parameter.numel() * config.num_experts_per_tok // experts
        else:
            count += parameter.numel()
    return count


def did_you_mean(name: str, known: list[str]) -> str:
    """The tail of an error message: the closest known name, if any is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
