"""A recipe as the TOML file a person reads: the settings that are not at their defaults, and where they come from.

Python's own tomllib only reads, and a recipe needs little of TOML, so what writes it stands here.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from superpose.errors import UserError
from superpose.files import write_text
from superpose.train.config import Recipe


def write_recipe(recipe: Recipe, path: Path, comments: Sequence[str] = (), spelled_out: Collection[str] = ()) -> None:
    """Writes a recipe that `load_recipe` reads back as the same, whole or not at all.

    Args:
        comments: sentences that head the file.
        spelled_out: `section.name` of settings that are written even if they are at their defaults.

    Raises:
        UserError: see `recipe_toml`.
    """
    write_text(path, recipe_toml(recipe, comments, spelled_out))


def recipe_toml(recipe: Recipe, comments: Sequence[str] = (), spelled_out: Collection[str] = ()) -> str:
    """The text of `write_recipe`'s file.

    Raises:
        UserError: a setting of the model's configuration is null, which TOML has no word for.
    """
    default = Recipe().model_dump(mode="json")
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines() or [""]]
    # Comments hold no control characters.
    lines = ["".join(character if character.isprintable() else " " for character in line) for line in lines]
    for section, values in recipe.model_dump(mode="json").items():
        # A weight that no source has is left out of the sources.
        chosen = {
            name: [{k: v for k, v in source.items() if v is not None} for source in value]
            if (section, name) == ("data", "corpus") and not isinstance(value, str)
            else value
            for name, value in values.items()
            if value != default[section][name] or f"{section}.{name}" in spelled_out
        }
        tables = {name: value for name, value in chosen.items() if isinstance(value, dict)}
        plain = {name: value for name, value in chosen.items() if name not in tables}
        for heading, table in ((section, plain), *((f"{section}.{name}", tables[name]) for name in tables)):
            if table or heading != section:
                lines += ["", f"[{heading}]", *(f"{_key(k)} = {_value(v, f'{heading}.{k}')}" for k, v in table.items())]
    return "\n".join(lines).strip("\n") + "\n"


def _value(value: Any, place: str) -> str:
    """A value in one line; tables inside of values are written inline."""
    if value is None:
        raise UserError(f"{place} is null, which a TOML recipe cannot say; leave it out")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(name)} = {_value(inner, f'{place}.{name}')}" for name, inner in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    return f"[{', '.join(_value(inner, place) for inner in value)}]"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """JSON's strings are TOML's, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
