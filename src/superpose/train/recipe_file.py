"""A recipe's file: read, with settings changed, and written.

TOML or JSON file  ->  Recipe  ->  --set overrides  ->  Recipe  ->  TOML file
"""

import json
import re
import reprlib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from superpose.errors import UserError, printable
from superpose.files import read_json, write_text
from superpose.models.build import did_you_mean
from superpose.recipes import find_recipe
from superpose.train.config import SHORT_FORM, Recipe, one_form
from superpose.train.hardware import faster_precision


def load_recipe(path: Path | str | None = None, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe and applies overrides such as `train.lr=1e-3`, in this order.

    Args:
        path: a TOML recipe, the `config.json` of a run or the name of a recipe of ours, such as cpu-tiny; the
            defaults if not given.
        overrides: `section.name=value`, the value written as in TOML, quotes around text optional.

    Raises:
        UserError: the file, a name, a value or a combination is wrong; it says which.
    """
    if path is None:
        return override(Recipe(), overrides or [])
    found = find_recipe(path)
    settings = read_sections(found)
    if found.suffix != ".json":  # which holds all settings
        _check_one_form(settings, settings.get("superposition"), str(path))
    recipe = _validate(settings, str(path))
    return override(recipe, overrides or [])


def override(recipe: Recipe, overrides: Sequence[str], source: str = "--set") -> Recipe:
    """A recipe with some settings changed; for what is wrong there is a UserError, see `load_recipe`.

    Args:
        source: where they stand, in the error.
    """
    if not overrides:
        return recipe
    settings = recipe.model_dump(mode="json")
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{source} {text}: expected NAME=VALUE, such as train.lr=1e-3")
        name = name.strip()
        *sections, last = name.split(".")
        if not sections:
            raise UserError(f"{source}: {name!r} is not a setting; write SECTION.NAME=VALUE, such as train.lr=1e-3")
        table: Any = settings
        for section in sections:
            table = table.get(section)
            if not isinstance(table, dict):
                raise UserError(f"{source}: there is no setting {name!r}{did_you_mean(name, _names())}")
        if sections == ["superposition"]:
            _check_one_form(settings, {last}, source)
        table[last] = parsed(value)
    return _validate(settings, source)


def parsed(value: str) -> Any:
    """A setting's value, written as in TOML; what is no TOML is text."""
    try:
        return tomllib.loads(f"value = {value.strip()}")["value"]
    except (ValueError, RecursionError):
        return value.strip()


def read_sections(path: Path) -> dict[str, Any]:
    """Sections of a recipe's TOML file, which may be some of them alone; a UserError if it cannot be read."""
    if path.suffix == ".json":
        return read_json(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"recipe {path} is not valid TOML: {error}") from None


def with_sections(recipe: Recipe, sections: Mapping[str, Any], source: str) -> Recipe:
    """A recipe with what `read_sections` gave in place of its own, setting by setting; tables keep what is not named.

    Raises:
        UserError: a name, a value or a combination is wrong; it begins with `source`.
    """
    settings = _merged(recipe.model_dump(mode="json"), sections)
    _check_one_form(settings, sections.get("superposition"), source)
    return _validate(settings, source)


def _merged(settings: Any, changes: Any) -> Any:
    if not (isinstance(settings, dict) and isinstance(changes, Mapping)):
        return changes
    return {**settings, **{name: _merged(settings.get(name), value) for name, value in changes.items()}}


def with_settings(recipe: Recipe, section: str, **settings: Any) -> Recipe:
    """A recipe with some settings of a section changed by the program; a UserError if they do not fit the rest."""
    whole = recipe.model_dump(mode="json")
    given = ", ".join(f"{section}.{name} = {value}" for name, value in settings.items())
    if section == "superposition" and not settings.get("stages"):
        _check_one_form(whole, settings, f"with {given}")
    changed = _validate({**whole, section: {**whole[section], **settings}}, f"with {given}")
    # All other sections are the recipe's own: thousands of runs that differ in their seeds share them.
    return recipe.model_copy(update={section: getattr(changed, section)})


def _check_one_form(settings: Any, given: Any, source: str) -> None:
    """A UserError if stages are described and a part of the short form is given beside them, be it at its default."""
    table = settings.get("superposition")
    if not isinstance(table, dict) or not table.get("stages") or not isinstance(given, Collection):
        return
    for name in SHORT_FORM:
        if name in given:
            raise UserError(f"{source}: {one_form(name)}")


def chosen_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with `train.precision` "auto" replaced by what is faster on this device."""
    if recipe.train.precision != "auto":
        return recipe
    return with_settings(recipe, "train", precision=faster_precision(device))


def _validate(settings: dict[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        # A union reports each of its members; the first says what is wrong.
        problems = {_place(problem["loc"]): _sentence(problem) for problem in reversed(error.errors())}
        raise UserError(f"{source}: " + "\n".join(reversed(problems.values()))) from None


def _place(location: tuple[int | str, ...]) -> str:
    """`section.name` of a problem; a dictionary's keys belong to it, a union's members do not."""
    return ".".join(str(part) for part in location[:2])


def _sentence(problem: Any) -> str:
    place = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {place!r}{did_you_mean(place, _names())}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = str(problem["msg"])
    return f"{place} is {reprlib.repr(problem['input'])}; {message[0].lower()}{message[1:]}"


def _names() -> list[str]:
    return [f"{section}.{name}" for section, values in Recipe() for name in type(values).model_fields]


def write_recipe(recipe: Recipe, path: Path, comments: Sequence[str] = (), spelled_out: Collection[str] = ()) -> None:
    """Writes a recipe that `load_recipe` reads back as the same, whole or not at all.

    Args:
        comments: sentences that head the file.
        spelled_out: `section.name` of settings that are written even if they are at their defaults.
    """
    write_text(path, recipe_toml(recipe, comments, spelled_out))


def recipe_toml(recipe: Recipe, comments: Sequence[str] = (), spelled_out: Collection[str] = ()) -> str:
    """The text of `write_recipe`'s file; a UserError if a setting is null, which TOML has no word for."""
    default = Recipe().model_dump(mode="json")
    lines = [f"# {printable(line)}".rstrip() for comment in comments for line in comment.splitlines() or [""]]
    for section, values in recipe.model_dump(mode="json").items():
        chosen = {
            name: value
            for name, value in values.items()
            if value != default[section][name] or f"{section}.{name}" in spelled_out
        }
        stages = chosen.pop("stages", [])
        if stages:  # beside which the short form is not to be named
            chosen = {name: value for name, value in chosen.items() if name not in SHORT_FORM}
        tables = {name: value for name, value in chosen.items() if isinstance(value, dict)}
        plain = {name: value for name, value in chosen.items() if name not in tables}
        written = [(f"[{section}.{name}]", table) for name, table in tables.items()]
        written += [(f"[[{section}.stages]]", stage) for stage in stages]
        for heading, table in ([(f"[{section}]", plain)] if plain else []) + written:
            place = heading.strip("[]")
            lines += ["", heading, *(f"{_key(k)} = {_toml(v, f'{place}.{k}')}" for k, v in table.items())]
    return "\n".join(lines).strip("\n") + "\n"


def _toml(value: Any, place: str) -> str:
    """A value in one line; tables inside of values are written inline."""
    if value is None:
        raise UserError(f"{place} is null, which a TOML recipe cannot say; leave it out")
    if isinstance(value, (int, float)):
        return repr(value).lower()  # of True, too
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        # Weights and names that no source has are left out of the sources.
        known = {k: v for k, v in value.items() if v is not None or place != "data.corpus"}
        inside = ", ".join(f"{_key(name)} = {_toml(inner, f'{place}.{name}')}" for name, inner in known.items())
        return f"{{ {inside} }}" if inside else "{}"
    return f"[{', '.join(_toml(inner, place) for inner in value)}]"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """JSON's strings are TOML's, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
