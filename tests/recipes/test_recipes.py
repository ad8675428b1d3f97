"""Recipes are found by name from anywhere; a file of the user's wins, and a wrong name is one sentence."""

import pytest

from superpose.errors import UserError
from superpose.recipes import NAMES, find_recipe
from superpose.train.config import Recipe
from superpose.train.recipe_file import load_recipe


def test_a_name_is_a_recipe_of_ours_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("cpu-tiny") == Recipe()
    assert {find_recipe(name).stem for name in NAMES} == set(NAMES)


def test_a_file_of_that_name_wins_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu-small").mkdir()
    assert find_recipe("cpu-small").is_file()
    (tmp_path / "cpu-tiny").write_text("[train]\nsteps = 7000\n")
    assert load_recipe("cpu-tiny").train.steps == 7000


@pytest.mark.parametrize("path", ["none.toml", "some/cpu-tiny", "/cpu-tiny"])
def test_what_looks_like_a_path_is_one(path):
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(path)


def test_a_wrong_name_is_one_sentence_with_the_names():
    with pytest.raises(UserError, match="recipe cpu-huge is no file, and none of superpose's own: cpu-small, cpu-tiny"):
        load_recipe("cpu-huge")
