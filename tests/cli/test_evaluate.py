import json

import pytest
from typer.testing import CliRunner

from superpose import cli
from superpose.errors import UserError
from superpose.train.loop import train
from tests.train.test_loop import changed


@pytest.fixture(scope="module")
def longer_run(recipe, store, tmp_path_factory):
    longer = tmp_path_factory.mktemp("longer") / "longer"
    train(changed(recipe, "train", steps=120, lr=1e-2), store, longer)
    return longer


def _invoke(*arguments):
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])


def test_two_runs_side_by_side(run, longer_run, corpus, tmp_path):
    options = ["--text", f"mine={corpus}", "--max-megabytes", 0.02, "--tasks", "copy,brackets", "--limit", 20]
    done = _invoke(run, longer_run, *options, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "longer is better than one: -" in done.output
    assert "tokens of context" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "summary.md", "tasks"}
    assert len(list((tmp_path / "out" / "tasks").glob("*.yaml"))) == 2
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    one, longer = record["texts"][0]["models"]
    assert longer["minus_first"]["high"] < 0
    assert longer["bits_per_byte"]["value"] < one["bits_per_byte"]["value"]
    assert "| copy |" in (tmp_path / "out" / "summary.md").read_text()


def test_what_runs_held_out_is_predicted_as_their_validation_did(run, longer_run):
    done = _invoke(run, longer_run, "--json")
    (text,) = json.loads(done.stdout)["texts"]
    for place, model in zip((run, longer_run), text["models"], strict=True):
        result = json.loads((place / "result.json").read_text())
        assert model["bits_per_byte"]["value"] == pytest.approx(result["val_bits_per_byte"], rel=1e-5)


def test_a_hugging_face_directory_on_named_text_as_json(run, corpus):
    done = _invoke(run / "model", "--text", f"mine={corpus}", "--max-megabytes", 0.01, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert [text["name"] for text in record["texts"]] == ["mine"]
    assert record["tasks"] == []
    assert record["latents"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "mine"], "expected NAME=PATH"),
        (["--text", "a=x", "--text", "a=y"], "gives a name twice"),
        (["--text", "a=no/such"], "no/such is not there"),
        (["--tasks-only"], "--tasks-only is for --tasks"),
        (["--latents", "17"], "one was made for 16"),
        (["--device", "nowhere"], "--device is 'nowhere'"),
    ],
)
def test_wrong_calls_are_one_sentence(run, arguments, message):
    done = _invoke(run, *arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_run_that_ended_in_superposition_is_refused(recipe, store, tmp_path):
    train(changed(changed(recipe, "superposition", ratio=1.0), "train", steps=4), store, tmp_path / "ended")
    done = _invoke(tmp_path / "ended")
    assert isinstance(done.exception, UserError)
    assert "ended inside superposition" in str(done.exception)
