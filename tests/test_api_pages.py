"""The samples of the API pages run as they stand, on runs of seconds."""

import json
import re

import pytest

from superpose.compare import Comparison
from superpose.evaluate import Evaluation
from superpose.reproduce import Reproduction
from superpose.train.recipe_file import load_recipe, write_recipe
from tests.conftest import trained
from tests.documented import ROOT


@pytest.fixture
def samples(run, tmp_path, monkeypatch):
    """Runs a page's samples one after another, where `runs` holds two runs, and returns their last names."""
    (tmp_path / "runs").mkdir()
    for name in ("ordinary", "tst"):
        (tmp_path / "runs" / name).symlink_to(run, target_is_directory=True)
    monkeypatch.chdir(tmp_path)

    def call(page):
        names = {}
        for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/api" / page).read_text("utf-8"), re.DOTALL):
            exec(compile(code, page, "exec"), names)  # our own text
        return names

    return call


def test_evaluate(samples, run, capsys, tmp_path):
    names = samples("evaluate.md")
    evaluation = names["evaluation"]
    result = json.loads((run / "result.json").read_text())
    assert [model.name for model in evaluation.models] == ["ordinary", "tst"]
    assert names["tst"].loss.value == pytest.approx(result["val_loss"], rel=1e-5)
    assert names["tst"].minus_first.value == 0  # twice the same run
    assert evaluation.tasks[0].items == 20
    assert "tst is not told apart from ordinary" in capsys.readouterr().out
    # Nothing is written unless it is asked for; what is written is read back as it was.
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    written = names["evaluate"](["runs/tst"], texts={}, tasks=["copy"], limit=5, out=tmp_path / "out")
    assert written.texts == []
    assert Evaluation.load(tmp_path / "out" / "evaluation.json") == written


def test_share(samples, run, capsys):
    names = samples("share.md")
    result = json.loads((run / "result.json").read_text())
    assert (names["facts"].parameters, names["facts"].val_loss) == (result["parameters"], result["val_loss"])
    assert names["recipe"].train.latents == 16
    said = capsys.readouterr().out
    assert said.count("the") >= 4
    # What is streamed is what is returned.
    pieces = []
    options = {"max_new_tokens": 4, "seed": 2}
    assert names["generate"]("runs/tst", "the", **options, stream=pieces.append) == "".join(pieces)
    assert names["sample"](names["model"], names["tokenizer"], "the", **options) == "".join(pieces)


def test_compare(samples, recipe, tmp_path, monkeypatch, capsys):
    """All three workflows on a tiny corpus, from its preparation to the files; runs train in this process."""
    write_recipe(recipe, tmp_path / "recipe.toml")
    for module in ("compare.workflow", "tune.halving", "reproduce.reproduction"):
        monkeypatch.setattr(f"superpose.{module}.train_all", lambda *of: trained(*of[:3]))
    names = samples("compare.md")
    printed = capsys.readouterr().out

    comparison, mine = names["comparison"], tmp_path / "runs" / "mine"
    assert comparison.verdict() in printed
    assert comparison.budgets("ordinary") == [20, 44]
    assert names["gain"].value == pytest.approx(comparison.equal_flops().value)
    again = Comparison.load(mine)
    assert again.tables() == comparison.tables()
    assert {"comparison.json", "summary.md", "loss.png", "tst-20-seed2"} <= {path.name for path in mine.iterdir()}

    tuned, found = names["tuned"], tmp_path / "runs" / "found"
    assert len(tuned.search.trials) == 3
    assert load_recipe(found / "recipe.toml") == tuned.recipe
    assert {"tuning.json", "summary.md", "ordinary-lr0.001-20-seed0"} <= {path.name for path in found.iterdir()}

    saved = Reproduction.load(tmp_path / "runs" / "again" / "reproduction.json")
    assert saved == [names["table1"]]
    assert (tmp_path / "runs" / "again" / "summary.md").exists()
