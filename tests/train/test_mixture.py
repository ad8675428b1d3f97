"""A run whose stages read different shares of named sources."""

import json
import re
from dataclasses import replace

import pytest

from superpose import StageArgs
from superpose.data.prepare import prepare_store
from superpose.errors import UserError
from superpose.plan import make_plan, request_of
from superpose.plan.fit import source_tokens
from superpose.runs.disk import open_run
from superpose.train.config import Recipe
from superpose.train.loop import announce, check_recipe, train
from superpose.train.recipe_file import load_recipe, override, with_settings
from superpose.train.records import Validation, read_records
from superpose.train.watch import curves
from tests.documented import ROOT
from tests.train.test_loop import killed_and_resumed, same_weights


@pytest.fixture(scope="module")
def mixed(recipe, documents, tmp_path_factory):
    """No code in the bags, and what was left out afterwards."""
    folder = tmp_path_factory.mktemp("sources")
    lines = documents.read_text().splitlines(keepends=True)[:500]
    (folder / "code.jsonl").write_text("".join(lines[:200]))
    (folder / "web.jsonl").write_text("".join(lines[200:]))
    settings = recipe.model_dump(mode="json")
    settings["data"]["corpus"] = {"code": str(folder / "code.jsonl"), "web": str(folder / "web.jsonl")}
    settings["superposition"] = {
        "stages": [
            {"ratio": 0.4, "bag_size": 4, "mixture": {"web": 1.0, "code": 0.0}},
            {"ratio": 0.3, "mixture": {"web": 0.25, "code": 0.75}},
        ]
    }
    return Recipe.model_validate(settings)


def prepared(recipe):
    """In this process, as there is so little."""
    return prepare_store(recipe.data.preparation, processes=1)


@pytest.fixture(scope="module")
def its_store(mixed):
    return prepared(mixed)


@pytest.fixture(scope="module")
def finished(mixed, its_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "run"
    train(mixed, its_store, path)
    return path


def test_its_passes_over_each_source_are_counted(finished, mixed, its_store):
    result = json.loads((finished / "result.json").read_text())
    sizes = {name: source.num_tokens for name, source in its_store.train.sources.items()}
    row = 16
    # 8 steps of bags, 6 of a quarter of web, 6 of what the text is, each of 4 rows.
    code = 6 * 3 + round(24 * sizes["code"] / sum(sizes.values()))
    rows = {"code": code, "web": 8 * 4 * 4 + 48 - code}
    assert result["source_epochs"] == {name: rows[name] * row / sizes[name] for name in sizes}
    assert result["raw_tokens"] == mixed.schedule.raw_tokens(64) == sum(rows.values()) * row
    assert f"({result['source_epochs']['code']:.2f} of code, " in announce(mixed, its_store)
    planned = replace(request_of(mixed), sources=source_tokens(its_store.train), unique_tokens=sum(sizes.values()))
    assert make_plan(planned).cost.source_epochs == result["source_epochs"]


def test_its_loss_on_each_source_is_told_beside_that_of_all(finished, its_store):
    result = json.loads((finished / "result.json").read_text())
    validations = read_records(finished / "metrics.jsonl", Validation)
    assert [set(record.val_loss_by_source) for record in validations] == [{"code", "web"}] * len(validations)
    # Rows of one source have other contexts than rows of all, and each its first token for free.
    tokens = {name: source.num_tokens for name, source in its_store.val.sources.items()}
    mean = sum(result["val_loss_by_source"][name] * tokens[name] for name in tokens) / sum(tokens.values())
    assert mean == pytest.approx(result["val_loss"], rel=0.02)
    assert "validation/val_loss_by_source/code" in curves(validations[-1])
    assert open_run(finished).result.val_loss_by_source == result["val_loss_by_source"]


@pytest.mark.error(n=9)
@pytest.mark.parametrize("step", [8, 12])
def test_killed_in_any_stage_it_resumes_to_the_same_bits(finished, mixed, its_store, tmp_path, step):
    assert same_weights(finished, killed_and_resumed(mixed, its_store, tmp_path / "run", step))


def test_a_run_on_a_named_store_without_a_mixture_is_that_on_a_plain_one(mixed, its_store, tmp_path):
    """The same bits: names alone change nothing that is computed."""
    bags = override(mixed, ["superposition.stages=[{ratio=0.4, bag_size=4}]", "train.steps=5"])
    plain = override(bags, [f"data.corpus=[{', '.join(f'{{path={one.path!r}}}' for one in mixed.data.corpus)}]"])
    results = []
    for name, recipe in (("named", bags), ("plain", plain)):
        result = train(recipe, prepared(recipe), tmp_path / name)
        results.append({what: value for what, value in result.items() if what in ("val_loss", "raw_tokens", "epochs")})
        assert "source_epochs" not in result
    assert results[0] == results[1]
    assert same_weights(tmp_path / "named", tmp_path / "plain")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ('{math="m"}', "the mixture of stage 1 names the source 'web'; the text has math"),
        ("python", "the mixture of stage 1 shares out named sources, and the text has none"),
    ],
    ids=["others", "none"],
)
def test_before_any_work_a_mixture_is_compared_with_the_names(mixed, sources, message):
    with pytest.raises(UserError, match=message):
        check_recipe(override(mixed, [f"data.corpus={sources}"]))


def test_the_page_shows_a_recipe_that_trains(mixed, its_store, tmp_path):
    page = (ROOT / "docs/mixture.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "recipe.toml").write_text(shown.replace('"store"', json.dumps(str(its_store.path))))
    recipe = load_recipe(tmp_path / "recipe.toml")
    check_recipe(recipe)
    bags, rest = recipe.schedule.stages
    assert (bags.bag_size, bags.mixture, rest.bag_size) == (4, {"web": 1, "code": 0}, 1)
    result = train(
        with_settings(mixed, "superposition", stages=recipe.superposition.stages), its_store, tmp_path / "run"
    )
    assert set(result["source_epochs"]) == {"code", "web"}


def test_a_prepared_store_is_asked_for_its_names(mixed, its_store):
    of_store = Recipe.model_validate({**mixed.model_dump(mode="json"), "data": {"corpus": str(its_store.path)}})
    check_recipe(of_store)
    wrong = StageArgs(0.5, mixture={"math": 1.0}).to_dict()
    settings = of_store.model_dump(mode="json") | {"superposition": {"stages": [wrong]}}
    with pytest.raises(UserError, match="names the source 'math'; the text has code, web"):
        check_recipe(Recipe.model_validate(settings))
