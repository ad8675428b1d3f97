"""From a Hugging Face directory to a recipe that trains its model on.

DIR/: config.json, *.safetensors, tokenizer.json -> checked by loading them -> RECIPE.toml
"""

from pathlib import Path

import torch

from superpose.core.model import SuperposedLM
from superpose.data.config import DataArgs
from superpose.data.store import TokenStore
from superpose.data.tokenizer import load_tokenizer, tokenizer_identity
from superpose.errors import UserError
from superpose.models.build import ModelArgs, build_config, longest_row
from superpose.models.load import load_weights, on_this_machine, predicts_bags
from superpose.train.config import Recipe
from superpose.train.recipe_file import load_recipe, with_settings, write_recipe


def import_model(directory: str | Path, out: str | Path, base: str | Path | None = None) -> Recipe:
    """Writes a recipe that trains the model of a Hugging Face directory on, and returns it.

    Text, optimizer and schedule are the base recipe's. Without one they are the defaults, and training is ordinary:
    a model that predicts the next token would first have to unlearn it for superposition.

    Args:
        directory: with config.json, weights in safetensors and tokenizer.json. Of one in a remote place a copy is made
            in the cache, which the recipe names.
        out: the TOML file to write; it must not exist.
        base: a recipe.

    Raises:
        UserError: the directory holds no causal language model that can be trained, or no tokenizer of it.
    """
    out = Path(out)
    if out.suffix != ".toml":
        raise UserError(f"{out}: expected a name that ends in .toml")
    if out.exists():
        raise UserError(f"{out} is there already; give another name")
    directory = on_this_machine(directory)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no config.json; give a directory that save_pretrained wrote")
    recipe = load_recipe(Path(base)) if base else Recipe().ordinary()
    place = str(directory.resolve())
    own = bool(recipe.data.tokenizer) and Path(recipe.data.tokenizer).resolve() == directory.resolve()
    end_of_text = recipe.data.end_of_text if own else ""
    tokenizer = load_tokenizer(place, end_of_text)
    config = build_config(ModelArgs(init_from=place), tokenizer.vocab_size, 1, tokenizer.end_of_text)
    model = load_weights(place, config)
    if any(not torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise UserError(f"{place} holds weights that are not finite numbers; take them from where they came")
    try:
        SuperposedLM(model).check()
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    changed = {"model": ModelArgs(init_from=place), "data": _data(recipe.data, directory, end_of_text)}
    longest = longest_row(config) or recipe.train.latents
    # The settings are checked together.
    taken = with_settings(recipe.model_copy(update=changed), "train", latents=min(recipe.train.latents, longest))
    comments = [f"Trains the model of {place} on."]
    if bags := predicts_bags(directory):
        comments.append(f"It predicts {bags}; ordinary training, as here, teaches it the next token.")
    spelled_out = ("data.corpus", "superposition.bag_size", "superposition.ratio")
    of_training = ("train.steps", "train.lr", "train.warmup_steps", "train.latents")
    write_recipe(taken, out, comments, (*spelled_out, *of_training))
    return taken


def _data(data: DataArgs, directory: Path, end_of_text: str) -> DataArgs:
    """The base recipe's text with the model's tokenizer."""
    if data.store is None:
        fresh = DataArgs.model_fields["vocab_size"].default
        tokenizer = str(directory.resolve())
        return data.model_copy(update={"tokenizer": tokenizer, "vocab_size": fresh, "end_of_text": end_of_text})
    own, stored = directory / "tokenizer.json", TokenStore.open(data.store).tokenizer_path / "tokenizer.json"
    if not stored.is_file() or tokenizer_identity(own) != tokenizer_identity(stored):
        raise UserError(
            f"{data.store} was prepared with another tokenizer than the model's; prepare its text again with: "
            f"superpose prepare SOURCE --tokenizer {directory} --out STORE"
        )
    return data
