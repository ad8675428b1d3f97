import pytest

from superpose.data.config import DataArgs
from superpose.data.readers import Source
from superpose.errors import UserError
from superpose.train.recipe_file import load_recipe, override, recipe_toml, write_recipe


def recipe_of(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    return load_recipe(tmp_path / "recipe.toml")


def test_sources_are_named_in_short_or_in_full(tmp_path):
    short = recipe_of(tmp_path, '[data.corpus]\nweb = "w.parquet"\ncode = ["a/", "b.txt"]\n')
    full = recipe_of(
        tmp_path,
        '[[data.corpus]]\nname = "web"\npath = "w.parquet"\n'
        '[[data.corpus]]\nname = "code"\npath = "a/"\n[[data.corpus]]\nname = "code"\npath = "b.txt"\n',
    )
    inline = override(full, ['data.corpus={web="w.parquet", code=["a/", "b.txt"]}'])
    assert short == full == inline
    expected = (Source("w.parquet", name="web"), Source("a/", name="code"), Source("b.txt", name="code"))
    assert short.data.preparation.sources == expected
    write_recipe(short, tmp_path / "written.toml")
    assert load_recipe(tmp_path / "written.toml") == short


def test_sources_without_names_are_written_as_before_there_were_any():
    recipe = override(load_recipe(), ['data.corpus=[{path="a"}, {path="b"}]'])
    assert "name" not in recipe_toml(recipe)
    assert all(not source.name for source in recipe.data.preparation.sources)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ('[{path="a", name="x"}, {path="b"}]', "some sources have a name and b has none"),
        ('{"a b"="x"}', "'a b' is no name of a source"),
        ("{}", "data.corpus"),
        ("{web=[]}", r"data.corpus gives the source web \[\]; give a path, or a list of paths"),
        ("{web=3}", "data.corpus gives the source web 3"),
        ('{web={path="a"}}', "data.corpus gives the source web {'path': 'a'}"),
    ],
    ids=["one without", "a blank", "none", "no path", "a number", "a table"],
)
def test_names_that_cannot_be_are_refused_with_the_setting(corpus, message):
    with pytest.raises(UserError, match=message):
        override(load_recipe(), [f"data.corpus={corpus}"])


def test_a_table_of_sources_is_no_store():
    assert DataArgs.model_validate({"corpus": {"web": "w"}}).store is None
