import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from superpose import cli

ROOT = Path(__file__).parents[2]

RIGHT = """
from superpose import multi_hot_cross_entropy, split_window
fold, loss = split_window, multi_hot_cross_entropy
"""
SUMMED = """
from superpose import multi_hot_cross_entropy, split_window as make_bags
def bag_loss(logits, targets):
    return multi_hot_cross_entropy(logits, targets) * targets.shape[-1]
"""


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["conform", *map(str, arguments)])


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "theirs.py"
        path.write_text(text)
        return path

    return write


def test_a_file_that_is_right(script):
    result = invoke(script(RIGHT))
    assert result.exit_code == 0, result.output
    assert "log V" in result.output
    assert "[green]" not in result.output


def test_evidence_is_text_and_no_markup(script):
    result = invoke(script("def step(model, window, bag_size):\n    raise ValueError('[red]is here[/red]')"))
    assert result.exit_code == 1
    assert "[red]is" in result.output


def test_a_file_that_is_wrong_with_names_of_its_own(script):
    result = invoke(script(SUMMED), "--role", "fold=make_bags", "--role", "loss=bag_loss", "--json")
    assert result.exit_code == 1
    found = {finding["error"]: finding for finding in json.loads(result.output)}
    assert found[2]["verdict"] == "wrong"
    assert "added up" in found[2]["evidence"]
    assert found[1]["verdict"] == "right"


def test_a_module_of_the_current_folder(script, monkeypatch):
    monkeypatch.chdir(script(RIGHT).parent)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    result = invoke("theirs")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("import nowhere_to_be_found", (), "cannot be imported: ModuleNotFoundError"),
        ("fold = 1", (), "fold is int; expected a callable"),
        ("", (), "nothing to check: give fold and loss, or step"),
        (RIGHT, ("--role", "step=training_step"), "has no 'training_step', named as its step"),
        (RIGHT, ("--role", "stepp=x"), "expected ROLE=NAME"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(script, refused, text, arguments, message):
    assert message in refused("conform", script(text), *arguments)


def test_a_missing_file(tmp_path):
    assert "no such file" in str(invoke(tmp_path / "none.py").exception)
