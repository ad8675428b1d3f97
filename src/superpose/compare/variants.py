"""Named variants of a recipe: arms of a comparison beside ordinary training and the recipe's own TST.

    "sqrt=superposition.pooling=sqrt"     settings as --set writes them, commas or semicolons between
    "anneal=anneal.toml"                  a TOML file with the sections that differ

A variant is the recipe with some of its settings changed. It differs in what is computed, and in nothing that would
make losses incomparable: text, seeds and the length of validated rows stay. Where its steps cost more or less than
ordinary ones, it is given fewer or more of them, so that all arms spend the same FLOPs.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from superpose.core.accounting import cost
from superpose.core.schedule import Schedule
from superpose.core.stage import Stage, StageArgs
from superpose.data.config import vocabulary_size
from superpose.errors import UserError
from superpose.models.build import build_config, build_model, model_flops_per_latent
from superpose.train.config import SHORT_FORM, Recipe, SuperpositionArgs
from superpose.train.recipe_file import override, parsed, read_sections, with_sections

Changes = Sequence[str] | Mapping[str, Any]
"""Settings as `--set` writes them, or sections as in a recipe."""

_UNSAID = {setting: SuperpositionArgs.model_fields[setting].default for setting in SHORT_FORM}
_WITHOUT = {"pooling": "output", "weighting": "input", "weighting_end": "input"}
"""Settings of bags that are read or predicted, and the mode whose stages have single tokens there."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
FIXED = {
    "train.seed": "all arms are trained with the comparison's seeds",
    "train.steps": "all arms are compared at the comparison's budgets",
    "train.latents": "losses are of validated rows of that length, so they would not compare",
}
"""Settings that a variant cannot change, and why."""


def parse_variant(text: str) -> tuple[str, Changes]:
    """Reads NAME=SETTINGS or NAME=FILE.toml.

    Raises:
        UserError: a part is missing, or the file cannot be read.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise UserError(
            f"--variant {text}: expected NAME=SETTINGS or NAME=FILE.toml, such as sqrt=superposition.pooling=sqrt"
        )
    if value.endswith(".toml"):
        return name, read_sections(Path(value))
    return name, settings_of(value)


def parse_variants(texts: Sequence[str]) -> dict[str, Changes]:
    """All of them, by name; a UserError if two share one."""
    found: dict[str, Changes] = {}
    for text in texts:
        name, changes = parse_variant(text)
        if name in found:
            raise UserError(f"--variant {name} stands there twice; give each variant a name of its own")
        found[name] = changes
    return found


def settings_of(text: str) -> list[str]:
    """Splits settings at commas and semicolons, but for those in brackets and in quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character in ",;" and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def changed_recipe(recipe: Recipe, name: str, changes: Changes) -> Recipe:
    """The recipe with a variant's settings.

    A setting that only stages have, such as `superposition.pooling`, is one of each stage of bags. Stages and the short
    form of `bag_size` and `ratio` take the place of each other.

    Raises:
        UserError: a setting is wrong; it names the variant.
    """
    source, named = f"--variant {name}", _superposition(changes)
    described = {"stages", "bag_size", "ratio"} & named.keys()
    of_stages = {field.name for field in fields(StageArgs)} - {"ratio"} - SuperpositionArgs.model_fields.keys()
    if recipe.superposition.stages and not described:
        of_stages |= {"mode", "weighting"}
    if described:
        update: dict[str, Any] = _UNSAID if "stages" in named else {"stages": ()}
        recipe = recipe.model_copy(update={"superposition": recipe.superposition.model_copy(update=update)})
    own = {setting: value for setting, value in named.items() if setting in of_stages}
    if isinstance(changes, Mapping):
        rest = {section: values for section, values in changes.items() if section != "superposition" or not own}
        if own:
            rest["superposition"] = {k: v for k, v in changes["superposition"].items() if k not in own}
        changed = with_sections(recipe, rest, source)
    else:
        places = tuple(f"superposition.{setting}" for setting in own)
        changed = override(recipe, [text for text in changes if text.partition("=")[0].strip() not in places], source)
    return _with_each_stage(changed, own, source) if own else changed


def _superposition(changes: Changes) -> dict[str, Any]:
    """What a variant says of superposition, by setting."""
    if isinstance(changes, Mapping):
        section = changes.get("superposition", {})
        return dict(section) if isinstance(section, Mapping) else {}
    pairs = [text.partition("=") for text in changes]
    places = [(place.strip().partition("."), value) for place, _, value in pairs]
    return {setting: parsed(value) for (section, _, setting), value in places if section == "superposition"}


def _with_each_stage(recipe: Recipe, settings: Mapping[str, Any], source: str) -> Recipe:
    """The recipe with these settings in each of its stages that has such bags; stages are spelled out for it."""
    bags = [stage for stage in recipe.schedule.args if stage.superposes]
    if not all(any(stage.mode != _WITHOUT.get(setting) for stage in bags) for setting in settings):
        names = ", ".join(f"superposition.{setting}" for setting in settings)
        raise UserError(f"{source} has no stage of bags, so {names} would be ignored; leave it out")
    try:
        stages = [
            replace(stage, **{k: v for k, v in settings.items() if stage.superposes and stage.mode != _WITHOUT.get(k)})
            for stage in recipe.schedule.args
        ]
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    unsaid = recipe.model_copy(update={"superposition": recipe.superposition.model_copy(update=_UNSAID)})
    return with_sections(unsaid, {"superposition": {"stages": [stage.to_dict() for stage in stages]}}, source)


def check_variants(
    recipe: Recipe, variants: Mapping[str, Changes], arms: Mapping[str, Recipe | None], tuned: Collection[str]
) -> None:
    """Whether these can be compared with the recipe's arms and with each other.

    Args:
        arms: those there are without variants; of None the name alone is taken.
        tuned: settings that are tuned for each arm; a variant cannot bring its own.

    Raises:
        UserError: a name is taken or no name, settings are wrong, or what they make does not compare.
    """
    known = {arm: _identity(of_arm) for arm, of_arm in arms.items() if of_arm is not None}
    before = recipe.model_dump(mode="json")
    for name, changes in variants.items():
        if name in arms:
            raise UserError(f"--variant {name} is the name of an arm that every comparison may have; choose another")
        if not _NAME.fullmatch(name):
            raise UserError(
                f"--variant {name!r} becomes part of names of runs; give letters, digits, '.', '_' and '-', 40 at most"
            )
        variant = changed_recipe(recipe, name, changes)
        after, computed = variant.model_dump(mode="json"), set(variant.changes(recipe))
        for section, values in after.items():
            for setting, value in values.items():
                place = f"{section}.{setting}"
                if value == before[section][setting]:
                    continue
                if place in FIXED:
                    raise UserError(f"--variant {name} changes {place}, but {FIXED[place]}; leave it out")
                if section == "data":
                    raise UserError(
                        f"--variant {name} changes {place}, but all arms read and are validated on one text; "
                        f"make it a comparison of its own"
                    )
                if place in tuned:
                    option = "--lrs" if place == "train.lr" else "--tune"
                    raise UserError(
                        f"--variant {name} changes {place}, which {option} chooses for each arm; leave it out"
                    )
                if place not in computed:
                    raise UserError(
                        f"--variant {name} changes {place}, which says how a run is computed and not what; give it "
                        f"for all arms, by --set"
                    )
        if variant.schedule.ends_in_superposition:
            raise UserError(
                f"--variant {name} ends in superposition, so its model could not be compared with an ordinary one; "
                f"give ratios that add up to less than 1"
            )
        for other, identity in known.items():
            if identity == _identity(variant):
                raise UserError(f"--variant {name} computes the same as {other}; change a setting, or leave it out")
        known[name] = _identity(variant)


def beside_bags(recipe: Recipe) -> str:
    """What a recipe's stages have that is no superposition and that ordinary training has not, in words; or ""."""
    stages = recipe.schedule.args
    found = ["a mixture of sources"] if any(stage.mixture is not None for stage in stages) else []
    found += ["a learning rate of their own"] if any(stage.lr_factor != 1 for stage in stages) else []
    return " and ".join(found)


def _identity(recipe: Recipe) -> tuple[dict[str, Any], Schedule]:
    """The same for recipes that compute the same, be their stages spelled out or not."""
    spelled = {f"superposition.{setting}" for setting in (*SHORT_FORM, "stages")}
    return {place: value for place, value in recipe.computing.items() if place not in spelled}, recipe.schedule


def training_flops(recipe: Recipe) -> int:
    """FLOPs of a whole run, forward and backward passes; of the model only its shapes are made."""
    config = build_config(recipe.model, vocabulary_size(recipe.data), recipe.train.latents, 0)
    model = build_model(config, "meta")
    flops_of, shorter = cache(partial(model_flops_per_latent, model)), recipe.superposition.expand == "batch"

    def of_latent(stage: Stage) -> int:
        # As `superpose.data.windows.WindowPlan.shape` has it, whose sources a mixture needs and FLOPs do not.
        parts = stage.raw_tokens_per_latent if shorter else 1
        return flops_of(recipe.train.latents // parts, stage.extra_heads)

    return cost(recipe.schedule, recipe.latents_per_step, of_latent).flops


def steps_of_equal_flops(recipe: Recipe, ordinary: Recipe) -> int:
    """Steps in which a recipe's run takes about as many FLOPs as an ordinary one; equal ones where steps cost the same.

    Args:
        ordinary: of as many steps as `recipe`.
    """
    return max(1, round(ordinary.train.steps * training_flops(ordinary) / training_flops(recipe)))
