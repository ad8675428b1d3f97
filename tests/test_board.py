"""The board is what its entries make, and an entry whose parts do not fit each other is refused."""

import json
import shutil

import pytest

import board
from superpose.errors import UserError

ENTRIES = sorted(file.parent for file in board.RESULTS.glob("*/entry.toml"))


@pytest.fixture
def mine(tmp_path):
    return shutil.copytree(board.RESULTS / "python-32000", tmp_path / "mine")


def alter(folder, change):
    file = folder / "comparison.json"
    saved = json.loads(file.read_text())
    change(saved)
    file.write_text(json.dumps(saved))


def test_the_page_is_what_the_entries_make():
    made = board.page([board.read_entry(folder) for folder in ENTRIES])
    assert board.PLACE.search(board.PAGE.read_text(encoding="utf-8"))[0] == f"<!-- board -->\n{made}<!-- end -->"


def test_every_comparison_is_on_it():
    assert sorted(file.parent for file in board.RESULTS.glob("*/comparison.json")) == ENTRIES


def test_conclusions_are_not_taken_over(mine):
    before = board.rows(board.read_entry(mine))
    alter(mine, lambda saved: saved.update(verdict="TST won.", answers={}))
    assert board.rows(board.read_entry(mine)) == before


@pytest.mark.parametrize("what", ["raw_tokens", "latents", "steps"])
def test_a_run_that_its_recipe_does_not_make_is_refused(mine, what):
    alter(mine, lambda saved: saved["runs"][3]["result"].update({what: saved["runs"][3]["result"][what] + 1}))
    with pytest.raises(UserError, match=rf"{what}, and its recipe makes"):
        board.read_entry(mine)


def test_arms_of_different_flops_are_refused(mine):
    def more(saved):
        for run in saved["runs"]:
            run["result"]["flops"] *= 1.02 if run["arm"] == "tst" else 1

    alter(mine, more)
    with pytest.raises(UserError, match="different FLOPs"):
        board.read_entry(mine)


def test_two_seeds_are_too_few(mine):
    alter(mine, lambda saved: saved.update(runs=[run for run in saved["runs"] if run["seed"] < 3]))
    with pytest.raises(UserError, match="2 seeds; expected 3 or more"):
        board.read_entry(mine)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("--lr 2e-3", "--lr 4e-3", "differ in train.lr"),
        ("--seeds 1,2,3,4,5", "--seeds 1,2", "differ in seeds"),
        ("--steps 32000", "--steps 32000 --set data.vocab_size=2048", "differ in data.vocab_size"),
        ("--name", "--variant sqrt=superposition.pooling=sqrt --name", "differ in variants"),
        ("superpose compare", "superpose train", "no `superpose compare` that trains"),
        ("by = ", "who = ", "expected command, text, machine, by"),
    ],
)
def test_a_command_that_asks_for_something_else_is_refused(mine, before, after, message):
    file = mine / "entry.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=message):
        board.read_entry(mine)
