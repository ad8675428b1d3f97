import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.errors import UserError
from superpose.recipes import NAMES
from superpose.train.config import Recipe
from superpose.train.recipe_file import load_recipe, recipe_toml, with_settings, write_recipe

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_any_configuration_of_a_model_is_read_back(config):
    recipe = Recipe.model_validate({"model": {"config": config}})
    assert Recipe.model_validate(tomllib.loads(recipe_toml(recipe))) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_our_recipes_are_read_back(name, tmp_path):
    recipe = load_recipe(name)
    write_recipe(recipe, tmp_path / "written.toml")
    assert load_recipe(tmp_path / "written.toml") == recipe


def test_sources_stages_and_weights_are_read_back(tmp_path):
    recipe = Recipe.model_validate(
        {
            "data": {"corpus": [{"path": 'a "quoted" \\ path'}, {"path": "b\x7f\n", "field": "körper"}]},
            "superposition": {"bag_size": [8, 4], "ratio": [0.1, 0.2], "weighting": "power"},
            "train": {"eps": 1e-16, "track": [], "lr": 1e20},
        }
    )
    write_recipe(recipe, tmp_path / "written.toml")
    assert load_recipe(tmp_path / "written.toml") == recipe


def test_it_holds_what_is_not_a_default_and_what_is_asked_for():
    recipe = with_settings(Recipe(), "train", lr=1e-3)
    comments = ["why\nin two lines", "a\x07bell", ""]
    assert recipe_toml(recipe, comments, ["superposition.bag_size", "train.lr"]) == (
        "# why\n# in two lines\n# a bell\n#\n\n[superposition]\nbag_size = 4\n\n[train]\nlr = 0.001\n"
    )
    assert recipe_toml(Recipe()) == "\n"


def test_null_is_refused():
    recipe = Recipe.model_validate({"model": {"config": {"rope": {"scaling": None}}}})
    with pytest.raises(UserError, match=r"model.config.rope.scaling is null"):
        recipe_toml(recipe)
