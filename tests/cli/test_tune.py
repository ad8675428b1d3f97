import json
import shlex
import sys

import pytest
from typer.testing import CliRunner

from superpose import cli
from superpose.files import read_json
from superpose.runs.pool import Outcome
from superpose.train.loop import train
from superpose.train.recipe_file import load_recipe, with_settings, write_recipe
from superpose.train.run_directory import finished
from tests.conftest import suggestions

OPTIONS = shlex.split("--bag-sizes 2,4 --ratios 0.2,0.4 --lrs 2e-2 --trials 3 --min-steps 10 --name found")


class KilledError(Exception):
    pass


class Trainer:
    """Trains in this process, as `train_all` does in others, and is killed after so many records of all runs."""

    def __init__(self, records=None):
        self.left, self.trained = records, []

    def __call__(self, runs, store, pool, jobs, display, *rest):
        outcomes = []
        for run in runs:
            directory = pool / run.key(store)
            if finished(directory) is None:
                self.trained.append(run.name)
            outcomes.append(Outcome(run, directory, train(run.recipe, store, directory, True, self.count)))
        return outcomes

    def count(self, record):
        if self.left is not None and record["kind"] not in ("start", "pace"):  # which are not written
            self.left -= 1
            if self.left == 0:
                raise KilledError


@pytest.fixture
def invoke(monkeypatch, recipe, tmp_path):
    """Calls the command on the tests' recipe."""
    # In windows so large that validation takes little time.
    write_recipe(with_settings(recipe, "train", batch_size=16, latents=64), tmp_path / "small.toml")

    def call(trainer, *arguments, runs="runs"):
        monkeypatch.setattr("superpose.tune.halving.train_all", trainer)
        words = [
            "superpose",
            "tune",
            str(tmp_path / "small.toml"),
            *OPTIONS,
            *arguments,
            "--runs",
            str(tmp_path / runs),
        ]
        monkeypatch.setattr(sys, "argv", words)
        return CliRunner().invoke(cli.app, words[1:])

    return call


def test_a_search_that_was_killed_ends_as_if_it_had_not_been(invoke, recipe, store, tmp_path, monkeypatch):
    whole = Trainer()
    done = invoke(whole, "--json", runs="whole")
    assert done.exit_code == 0, done.output
    assert len(whole.trained) == 2 + 3 + 2

    # Ordinary runs write 12 and 23 records, so this is inside of a short run, and then inside of a full one.
    assert isinstance(invoke(Trainer(43)).exception, KilledError)
    assert isinstance(invoke(Trainer(45)).exception, KilledError)
    again = Trainer()
    resumed = invoke(again)
    assert resumed.exit_code == 0, resumed.output
    assert len(again.trained) == 2

    facts = json.loads(done.stdout)
    saved = read_json(tmp_path / "runs/found/tuning.json")
    assert read_json(tmp_path / "whole/found/tuning.json") == facts
    elsewhere = {"command", "next"}
    assert {k: v for k, v in saved.items() if k not in elsewhere} == {
        k: v for k, v in facts.items() if k not in elsewhere
    }
    assert invoke(Trainer(1)).output == resumed.output  # nothing is left to train

    winner = facts["winner"]["trial"]
    written = load_recipe(tmp_path / "runs/found/recipe.toml")
    assert written.model_dump(mode="json") == facts["recipe"]
    assert (written.train.lr, written.train.steps) == (winner["lr"], 20)
    assert written.superposition.bag_size == winner["bag_size"]
    assert written.train.seed == recipe.train.seed
    assert facts["verdict"] in " ".join(resumed.output.split())

    # Its runs have names, and the file it ends with is one to train from, and to compare.
    link = tmp_path / "runs/found/ordinary-lr0.02-20-seed0"
    assert read_json(link / "result.json")["val_loss"] in [
        loss for standing in facts["rungs"][-1]["ordinary"] for loss in standing["losses"]
    ]
    compare, train = suggestions(resumed.output)
    assert compare == shlex.split(saved["next"])[1:]
    run = CliRunner().invoke(cli.app, train)
    assert run.exit_code == 0, run.output
    planned = []

    def plan_alone(runs, *_):
        planned.extend(runs)
        return sys.exit(0) if runs else []

    monkeypatch.setattr("superpose.compare.workflow.train_all", plan_alone)
    assert CliRunner().invoke(cli.app, shlex.split(saved["next"])[1:]).exit_code == 0
    assert {run.seed for run in planned} == {1, 2, 3, 4, 5}


def test_its_help_reads_well():
    said = CliRunner().invoke(cli.app, ["tune", "--help"]).output
    assert "successive halving" in said
    assert "None" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lrs", "high"], "--lrs high: expected numbers"),
        (["--bag-sizes", "1"], "--bag-sizes 1: expected 2 or more"),
        (["--ratios", "1.5"], "--ratios 1.5"),
        (["--seeds", "x"], "--seeds x: expected whole numbers"),
        (["--budget", "1"], "takes 4.97 full runs; raise it"),
        (["--budget", "9", "--trials", "3"], "leave out --trials"),
        (["--min-steps", "50"], "warmup_steps (200)"),
        (["--name", "pool"], "choose another name"),
        (["--steps", "0"], "train.steps"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(arguments, message, refused, tmp_path):
    assert message in refused("tune", *arguments)
    assert not list(tmp_path.iterdir())
