"""Models and tokenizers from Hugging Face directories: nothing is fetched, and no code or pickle in them is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from superpose.copies import local_copy
from superpose.errors import UserError, first_line, last_line
from superpose.files import read_json
from superpose.places import is_remote, list_names

ABOUT = "superpose.json"
"""File of an exported model that says what it predicts, and where it comes from."""
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""Of the files of a model and its tokenizer."""
NEXT_TOKEN = "next token"  # noqa: S105  # no password


def on_this_machine(place: str | Path) -> Path:
    """The directory itself or, of a model in a remote place, a copy of its files in the cache.

    Raises:
        UserError: a file cannot be read, or is not what the model's superpose.json says.
    """
    if not is_remote(str(place)):
        return Path(place)
    there = [name for name in list_names(str(place)) if name.endswith(_SUFFIXES)]
    # It is written last.
    if "config.json" not in there:
        raise UserError(f"{place} holds no config.json; give the place of a whole model")
    known: dict[str, Any] = {}
    if ABOUT in there:
        known = read_json(local_copy(str(place), {ABOUT: None}) / ABOUT).get("sha256", {})
    return local_copy(str(place), {name: known.get(name) for name in there})


def is_model(place: Path) -> bool:
    """Whether a directory holds a configuration of transformers, and not a run."""
    return (place / "config.json").is_file() and "model_type" in read_json(place / "config.json")


def predicts_bags(directory: Path) -> str | None:
    """What the model of an exported directory predicts instead of the next token; None if it generates text."""
    path = directory / ABOUT
    predicts = read_json(path).get("predicts") if path.is_file() else None
    return str(predicts) if predicts not in (None, NEXT_TOKEN) else None


def load_model(directory: Path, called: str = "", **settings: Any) -> nn.Module:
    """The causal LM in a directory that `save_pretrained` wrote, on the CPU.

    Args:
        called: what messages call the directory; by default its path.
        settings: further ones of `from_pretrained`; by default the directory's own configuration and precision.

    Raises:
        UserError: the directory holds no weights in safetensors, or not all of the model's, or asks for others' code.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    place = called or str(directory)
    refuse_code_of_others(read_json(directory / "config.json"), f"{directory / 'config.json'}: ")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{place} holds no weights (*.safetensors); give a directory that save_pretrained wrote")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            **{"dtype": "auto", **settings},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # of transformers and safetensors, one class for each kind of damage
        raise UserError(f"{place} cannot be loaded: {last_line(error)}") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        odd = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[0]
        raise UserError(f"{place} does not hold all weights of its model: {odd}")
    loaded: nn.Module = model
    return loaded


def load_config(directory: Path) -> Any:
    """The configuration of transformers in a directory.

    Raises:
        UserError: it cannot be read, or asks for others' code.
    """
    from transformers import AutoConfig

    refuse_code_of_others(read_json(directory / "config.json"), f"{directory / 'config.json'}: ")
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises for a file that was altered
        raise UserError(f"{directory} cannot be read: {first_line(error)}") from None


def load_weights(init_from: str, config: Any) -> nn.Module:
    """The model that training goes on from, in float32 on the CPU, for a recipe's `model.init_from`.

    Raises:
        UserError: see `load_model`.
    """
    return load_model(Path(init_from), f"model.init_from {init_from}", config=config, dtype=torch.float32)


def load_with_tokenizer(directory: Path) -> tuple[Any, Any]:
    """A model that predicts the next token, set to evaluation, and its tokenizer, both of transformers.

    Raises:
        UserError: they cannot be loaded, or the model predicts bags.
    """
    if predicts := predicts_bags(directory):
        raise UserError(f"{directory} predicts {predicts}, not the next token, so what it generated would be noise")
    return load_model(directory).eval(), text_tokenizer_of(directory)


def text_tokenizer_of(directory: Path) -> Any:
    """A tokenizer of transformers that reads text as training does (`superpose.data.tokenizer`).

    Whatever class and template the directory names, it is `tokenizer.json` that is read, and nothing is put around a
    text.

    Raises:
        UserError: the directory holds no tokenizer that can be loaded.
    """
    from transformers import PreTrainedTokenizerFast

    plain = {"split_special_tokens": True, "add_bos_token": False, "add_eos_token": False}
    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True, **plain)
    except Exception as error:  # whatever transformers raises for a file that is missing or was altered
        raise UserError(f"{directory} holds no tokenizer that can be loaded: {first_line(error)}") from None


def refuse_code_of_others(settings: dict[str, Any], place: str) -> None:
    """
    Raises:
        UserError: a setting of transformers names a kernel of a hub, which it would fetch and run.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            refuse_code_of_others(value, f"{place}{name}.")
        if name.endswith("_implementation") and "/" in str(value):
            raise UserError(f"{place}{name} is {value!r}, code of others, which is not run; leave it out")
