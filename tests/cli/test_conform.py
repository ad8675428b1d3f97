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
    text = """
from superpose.conform.probe import Probe
def step(model, window, bag_size):
    if bag_size == 1:
        raise ValueError("[red]is here[/red]")
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.embedding(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
"""
    result = invoke(script(text))
    assert result.exit_code == 3  # nothing is wrong, and recovery could not be shown
    assert "[red]is" in result.output
    assert "0 wrong, 4 not checked" in result.output


def test_a_file_that_is_wrong_with_names_of_its_own(script):
    result = invoke(script(SUMMED), "--role", "fold=make_bags", "--role", "loss=bag_loss", "--json")
    assert result.exit_code == 1
    found = {finding["error"]: finding for finding in json.loads(result.output)}
    assert found[2]["state"] == "wrong"
    assert "added up" in found[2]["reason"]
    assert found[1]["state"] == "right"


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
        ("", (), "nothing to check: give step, or fold and loss"),
        (RIGHT + "mode = 'both'", (), "mode is 'both'; expected one of 'full', 'input', 'output'"),
        (RIGHT + "bag_sizes = (1, 2)", (), "bag_sizes is (1, 2); expected whole numbers of 2 or more"),
        (RIGHT, ("--ordinary",), "give step(model, window)"),
        ("def step(model, window, bag_size):\n    return window[99]", (), "step raised IndexError at bag size 2"),
        (RIGHT, ("--role", "step=training_step"), "has no 'training_step', named as its step"),
        (RIGHT, ("--role", "stepp=x"), "expected ROLE=NAME"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(script, refused, text, arguments, message):
    assert message in refused("conform", script(text), *arguments)


def test_ordinary_training_and_a_neighbour_that_is_imported(script):
    (script("").parent / "neighbour_of_theirs.py").write_text("from superpose import multi_hot_cross_entropy as loss")
    text = """
from neighbour_of_theirs import loss
def step(model, window):
    print("a step")
    return loss(model(input_ids=window[:, :-1]).logits, window[:, 1:, None])
"""
    result = invoke(script(text), "--ordinary", "--json")
    assert result.exit_code == 0, result.output
    assert {one["check"]: one["state"] for one in json.loads(result.output) if one["promised"]} == {
        "shift": "right",
        "first loss": "right",
    }


def test_a_missing_file(tmp_path):
    assert "no such file" in str(invoke(tmp_path / "none.py").exception)
