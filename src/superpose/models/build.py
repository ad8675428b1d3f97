"""Models from transformers' own configurations: superpose defines none."""

from __future__ import annotations

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from superpose.core.accounting import extra_heads_flops, flops_per_latent
from superpose.errors import UserError, first_line, last_line
from superpose.files import read_json
from superpose.models.load import refuse_code_of_others

_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}


_MOST_LAYERS = 4096
"""Building more takes minutes, even without their weights."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
_WANT_PADDING = {
    *(
        "camembert",
        "data2vec-text",
        "modernbert-decoder",
        "prophetnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm",
        "xlm-roberta",
    ),
    *("xlm-roberta-xl", "xmod"),
}


class ModelArgs(BaseModel):
    """An architecture of transformers and its configuration: written out, in a file, or with weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    architecture: str = "llama"
    """The `model_type` of a causal language model in transformers: llama, qwen3, qwen3_moe, gpt2, ..."""
    config: dict[str, Any] = Field(default_factory=_TINY.copy)
    """Settings of that configuration. Vocabulary, context length and end of text are set by the run."""
    config_file: str = ""
    """A `config.json` as transformers writes it, in place of both."""
    init_from: str = ""
    """A model's directory, in place of both: training goes on from its weights."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelArgs:
        given = [name for name in ("config_file", "init_from") if getattr(self, name)]
        if given:
            given += [name for name in ("architecture", "config") if name in self.model_fields_set]
            # A run's own config.json holds every setting; those at their defaults say nothing.
            default = ModelArgs()
            given = [name for name in given if getattr(self, name) != getattr(default, name)]
        if len(given) > 1:
            raise ValueError(f"model.{given[0]} says all of the model; leave out model.{', model.'.join(given[1:])}")
        return self

    @property
    def stored_config(self) -> Path | None:
        """The configuration file, if there is one."""
        if self.init_from:
            return Path(self.init_from) / "config.json"
        return Path(self.config_file) if self.config_file else None


def build_config(args: ModelArgs, vocab_size: int, latents: int, end_of_text: int) -> Any:
    """The transformers configuration of a run's model.

    Raises:
        UserError: transformers knows no such model or setting, or refuses a value.
    """
    place = "model.config." if args.stored_config is None else f"{args.stored_config}: "
    special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": None}
    if args.stored_config is not None:
        config = _read_config(args, vocab_size)
        # A model that exists keeps its embedding, whose rows may be more than the tokenizer's entries.
        special["vocab_size"] = max(vocab_size, config.vocab_size) if args.init_from else vocab_size
        config.update(special)
    else:
        config = _new_config(args, {"max_position_embeddings": latents, "vocab_size": vocab_size, **special})
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise UserError(f"{place}num_hidden_layers is {layers}; give at most {_MOST_LAYERS}")
    longest = longest_row(config)
    if longest is not None and longest < latents:
        names = (*filter(_LENGTHS.__contains__, args.config), *_LENGTHS)
        name = next(name for name in names if getattr(config, name, None) == longest)
        raise UserError(f"{place}{name} is {longest} but train.latents is {latents}; raise the one or lower the other")
    return config


def longest_row(config: Any) -> int | None:
    """Positions that a model of this configuration has at most; None where there is no such number."""
    known = (getattr(config, name, None) for name in _LENGTHS)
    return min((number for number in known if isinstance(number, int) and number > 0), default=None)


def _new_config(args: ModelArgs, settings: dict[str, Any]) -> Any:
    """A configuration of the architecture with the recipe's settings over the given ones."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    _known_architecture(args.architecture, "model.architecture")
    for taken in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
        if taken in args.config:
            raise UserError(f"model.config.{taken} is set by the run's tokenizer; leave it out of the recipe")
    refuse_code_of_others(args.config, "model.config.")
    # A family's own name for one of them, where the recipe has it, comes first.
    aliases = CONFIG_MAPPING[args.architecture].attribute_map
    settings = {name: value for name, value in settings.items() if aliases.get(name) not in args.config}
    given = {**settings, **args.config}
    config = _config_of(args.architecture, given, "model.config: ")
    heads, groups = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and groups and heads % groups:
        if "num_key_value_heads" in args.config:
            raise UserError(
                f"model.config.num_key_value_heads is {groups}, which does not divide num_attention_heads, {heads}"
            )
        # The family's default is that of a large model; without groups there are as many as heads.
        config = _config_of(args.architecture, {**given, "num_key_value_heads": heads}, "model.config: ")
    known = {field.name for field in fields(config)} | set(config.attribute_map) | {"attn_implementation", "head_dim"}
    for name in args.config:
        if name not in known:
            raise UserError(
                f"model.config.{name} is no setting of {args.architecture}{did_you_mean(name, sorted(known))}"
            )
    return config


def _read_config(args: ModelArgs, vocab_size: int) -> Any:
    """The configuration in a file of the recipe."""
    path = args.stored_config
    assert path is not None
    settings = read_json(path)
    settings.pop("auto_map", None)  # code of its own, which is not run
    refuse_code_of_others(settings, f"{path}: ")
    architecture = str(settings.pop("model_type", ""))
    _known_architecture(architecture, f"{path}: model_type")
    config = _config_of(architecture, settings, f"{path}: ")
    if args.init_from and config.vocab_size < vocab_size:
        raise UserError(
            f"{path}: the model's vocabulary has {config.vocab_size} entries but the tokenizer {vocab_size}; take the "
            f"tokenizer it was trained with, or enlarge the model by resize_token_embeddings and save it anew"
        )
    return config


def _config_of(architecture: str, settings: dict[str, Any], place: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(architecture, **settings)
    except Exception as error:  # transformers raises a class of its own for each kind of bad value
        raise UserError(f"{place}{last_line(error)}") from None


def _known_architecture(name: str, place: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known_models = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if name not in known_models:
        raise UserError(
            f"{place} is {name!r}, which is no causal language model of transformers{did_you_mean(name, known_models)}"
        )
    if name in _WANT_PADDING:
        raise UserError(
            f"{place} is {name!r}, which needs a padding token; text has none to spare, so take another family"
        )
    text_type = _text_type(CONFIG_MAPPING[name])
    if text_type not in ("", CONFIG_MAPPING[name].model_type):
        known = text_type in known_models
        raise UserError(
            f"{place} is {name!r}, which reads more than text; "
            + (f"its text model is {text_type!r}" if known else "its text model is no causal model of its own")
        )


def _text_type(kind: Any) -> str:
    """The `model_type` of the part of a configuration that reads text, or its own."""
    try:
        return str(kind().get_text_config(decoder=True).model_type)
    except Exception:  # the defaults of some do not fit together
        return str(getattr(kind.sub_configs.get("text_config"), "model_type", kind.model_type))


def build_model(config: Any, device: str | torch.device = "cpu") -> nn.Module:
    """A freshly initialised causal LM; on the "meta" device its shapes only, in no time.

    Raises:
        UserError: the configuration's values do not fit together.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device(device):
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever transformers and PyTorch raise for values they take for granted
        reason = f"{error} is not known" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"model.config does not make a {config.model_type} model: {reason}") from None
    return model


def model_flops_per_latent(model: nn.Module, latents: int, extra_heads: int = 0) -> int:
    """Forward and backward FLOPs of one position in a row of `latents`, see `flops_per_latent`.

    Where a configuration does not say what that takes, or says it layer by layer, the products of a forward pass are
    counted and taken three times.

    Args:
        extra_heads: heads beside the model's own, see `superpose.core.extra_heads`.
    """
    vocab_size, width = model.get_output_embeddings().weight.shape  # type: ignore[operator]  # of transformers' base class
    return _own_flops(model, latents) + extra_heads_flops(extra_heads, width, vocab_size)


def _own_flops(model: nn.Module, latents: int) -> int:
    config: Any = model.config
    try:
        heads = getattr(config, "num_attention_heads", 0)  # none in a state-space model
        head_dim = (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
        return flops_per_latent(matmul_parameters(model), config.num_hidden_layers, heads * head_dim, latents)
    except Exception:  # a figure for the log stops no run
        return _counted_flops(model, latents)


def _counted_flops(model: Any, latents: int) -> int:
    table = model.get_input_embeddings().weight
    # Of the kernels of attention, this one is counted on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(input_ids=torch.zeros(1, latents, dtype=torch.int64, device=table.device), use_cache=False)
    return int(3 * counter.get_total_flops() // latents)


def matmul_parameters(model: nn.Module) -> int:
    """Weights one position is multiplied with: matrices and the head, no look-up tables, of experts the active ones.

    Raises:
        AttributeError: the configuration does not say how many experts a position is sent to.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings().weight  # type: ignore[operator]  # of transformers' base class
    count: int = head.numel()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or parameter is head or id(parameter) in tables:
            continue
        if ".experts." in name:
            count += parameter.numel() * _setting(model.config, _CHOSEN) // _setting(model.config, _EXPERTS)
        else:
            count += parameter.numel()
    return count


def _setting(config: Any, names: tuple[str, ...]) -> int:
    """The first of these settings that a configuration has, by families' names for the same."""
    for holder in (config, getattr(config, "ffn_config", None)):
        for name in names:
            if value := getattr(holder, name, None):
                return int(value)
    raise AttributeError(f"none of {', '.join(names)}")


def did_you_mean(name: str, known: list[str]) -> str:
    """The tail of an error message: the closest known name, if any is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
