"""The directory of a run: whose it is, and what is left in it.

RUN/config.json     the resolved recipe           RUN/checkpoints/   to resume from
RUN/metrics.jsonl   training and validation       RUN/model/         the final model, as transformers saves it
RUN/store.json      the tokens it reads           RUN/result.json    what came out, when finished
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from superpose.data.store import TokenStore
from superpose.errors import UserError
from superpose.files import read_json, whole_directory, write_json
from superpose.models.build import build_model
from superpose.models.save import save_model
from superpose.train.config import Recipe
from superpose.train.recipe_file import chosen_precision, load_recipe, with_settings
from superpose.train.records import Result, checked


def claim(run: Path, recipe: Recipe, store: TokenStore, resume: bool, device: Any) -> Recipe:
    """Makes the run's directory, or checks that it is the one to go on with; a UserError if it is another run's.

    To resume where there is nothing yet is to start, so that one command serves first start, restart and requeue.
    Returns the recipe with all choices made: those of the run's start, if it is resumed.
    """
    path = run / "config.json"
    if not path.exists():
        # One that was killed at its very start has left its store's name, or a file without a name of its own.
        if run.exists() and any(path.name != "store.json" and path.name[0] != "." for path in run.iterdir()):
            raise UserError(f"{run} is not empty and holds no run; give a new directory")
        recipe = chosen_precision(recipe, device)
        write_json(run / "store.json", {"fingerprint": store.fingerprint, "path": str(store.path)})
        write_json(path, recipe.model_dump(mode="json"))
        return recipe
    if link := next((inside for inside in run.iterdir() if inside.is_symlink()), None):
        raise UserError(f"{link} is a link, and a run writes into its own directory alone; put what it leads to there")
    if not resume:
        raise UserError(f"{run} holds a run already; add --resume to go on with it, or give a new directory")
    if read_json(run / "store.json").get("fingerprint") != store.fingerprint:
        raise UserError(f"{run} was started on other text than the corpus holds now; give a new directory")
    before = load_recipe(path)
    if recipe.train.precision == "auto":
        recipe = with_settings(recipe, "train", precision=before.train.precision)
    if changed := ", ".join(recipe.changes(before)):
        raise UserError(f"{run} was started with another {changed}; resume with {path}, or give a new directory")
    return recipe


def shared_steps(trunk: Path, recipe: Recipe, store: TokenStore) -> int:
    """Steps that a run begins with just as the ordinary run in `trunk` does; 0 if the two have nothing in common."""
    if not (trunk / "config.json").exists():
        return 0
    shorter = load_recipe(trunk / "config.json")
    same = read_json(trunk / "store.json").get("fingerprint") == store.fingerprint
    if not same or recipe.changes(shorter) != ["train.steps"] or shorter.train.steps > recipe.train.steps:
        return 0
    return min(shorter.stable_steps, recipe.stable_steps)


def finished(run: Path) -> dict[str, Any] | None:
    """What is in the result.json of a run that is finished; a UserError if it was altered."""
    path = run / "result.json"
    if not path.exists():
        return None
    checked(Result, result := read_json(path), path)
    return result


def export_model(config: Any, weights: dict[str, Tensor], store: TokenStore, path: Path) -> None:
    """Writes weights and tokenizer as a Hugging Face directory, whole or not at all."""
    with whole_directory(path) as aside:
        # A model without weights of its own: that which was trained may be sharded, and named after it.
        save_model(aside, build_model(config, "meta"), store.tokenizer_files(), weights)
