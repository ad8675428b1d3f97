import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from superpose import cli
from tests.conftest import suggested


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


ROOT = Path(__file__).parents[2]
TINY = "cpu-tiny"
NUMBERS = ("--params", "3B", "--tokens", "60B")


def test_a_plan_out_of_numbers():
    result = invoke(*NUMBERS, "--data", "100B", "--hardware", "8xH100", "--price", "2.5/h")
    assert result.exit_code == 0, result.output
    for words in ("go: s", "Why", "What it takes", "Memory of a device", "price"):
        assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((TINY, "--set=train.lr=1e-3"), ["compare", TINY, "--set=train.lr=1e-3"]),
        ((TINY, "--bag-size", 2, "--ratio", 0.2), ["compare", TINY, "--bag-size", "2", "--ratio", "0.2"]),
        (("paper-270m",), ["train", "paper-270m", "--out", "runs/paper-270m"]),
        (NUMBERS, ["recipes"]),
    ],
)
def test_a_plan_names_the_command_that_carries_it_out(arguments, command):
    assert suggested(invoke(*arguments).output) == command


def test_a_plan_that_advises_against_a_run_names_no_command():
    result = invoke(TINY, "--set=train.steps=1000")
    assert result.output.startswith("do not")
    assert "Next:" not in result.output


def test_json_for_programs():
    result = invoke(*NUMBERS, "--hardware", "8xH100", "--bag-size", 6, "--ratio", 0.3, "--json")
    plan = json.loads(result.stdout)
    assert plan["decision"] == "go"
    assert plan["setting"] == {"bag_size": 6, "ratio": 0.3, "weighting": "uniform"}
    assert plan["cost"]["hours"][0] < plan["cost"]["hours"][1]
    assert plan["cost"]["raw_tokens"] == pytest.approx(2.5 * plan["cost"]["latents"], rel=1e-3)
    assert plan["cost"]["price"] is None


def test_a_recipe_and_its_report(tmp_path):
    result = invoke("paper-270m", "--hardware", "8xB200", "--out", tmp_path / "plan")
    assert result.exit_code == 0, result.output
    reported = CliRunner().invoke(cli.app, ["report", str(tmp_path / "plan")])
    assert reported.exit_code == 0, reported.output
    page = (tmp_path / "plan" / "report.html").read_text()
    assert "Memory of a device" in page
    assert "254M parameters" in page
    (tmp_path / "plan" / "plan.json").write_text('{"format": "other"}')
    assert "make the plan again" in str(CliRunner().invoke(cli.app, ["report", str(tmp_path / "plan")]).exception)


def test_a_setting_of_ones_own_takes_the_place_of_the_recipes():
    for recipe in (TINY, "cpu-tiny-tail"):
        plan = json.loads(invoke(recipe, "--bag-size", 2, "--ratio", 0.5, "--json").stdout)
        assert [(phase["bag_size"], phase["steps"]) for phase in plan["cost"]["phases"]] == [(2, 1500), (1, 1500)]
        assert plan["cost"]["raw_tokens"] == 1.5 * plan["cost"]["latents"]


@pytest.mark.parametrize("recipe", [(TINY,), ("cpu-tiny-tail",), ("cpu-tiny-tail", "--bag-size", 2, "--ratio", 0.5)])
def test_calibration_on_this_machine(recipe, corpus, tmp_path):
    settings = ["data.vocab_size=300", "data.val_fraction=0.1", "data.val_megabytes=0.02", "train.batch_size=4"]
    settings += ["train.latents=16", "train.steps=40", "train.warmup_steps=2", f"data.corpus='{corpus}'"]
    result = invoke(*recipe, "--calibrate", "--hardware", "cpu", *(p for s in settings for p in ("--set", s)))
    assert result.exit_code == 0, result.output
    assert "Measured here" in result.output


def test_a_device_of_ones_own_and_a_price_with_its_currency():
    own = ("--hardware", "8xmy-card", "--flops", "400T", "--memory", "96GB", "--price", "2 eur/h")
    result = invoke(*NUMBERS, *own)
    assert result.exit_code == 0, result.output
    for words in ("8 x my-card", " EUR", "at 2 EUR a device and hour", "days"):
        assert words in result.output


def test_reasons_are_read_from_the_left_and_not_cut():
    result = invoke(*NUMBERS, "--data", "10B")
    assert "…" not in result.output
    lines = result.output.splitlines()
    start = next(line for line in lines if line.strip() == "reason").index("reason")
    notes = [line for line in lines if line.startswith("note")]
    assert notes
    assert all(line[4:start].isspace() and line[start] != " " for line in notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*NUMBERS, "--flops", "400T"), "--flops would be ignored"),
        ((*NUMBERS, "--memory", "lots", "--hardware", "A100"), "--memory lots"),
        ((*NUMBERS, "--price", "2 EUR USD", "--hardware", "A100"), "--price 2 EUR USD"),
        ((), "give a recipe, or --params and --tokens"),
        (("--params", "3B"), "give a recipe, or --params and --tokens"),
        (("--params", "three", "--tokens", "1B"), "--params three: expected an amount"),
        ((*NUMBERS, "--price", "2.5/h"), "--price would be ignored"),
        ((*NUMBERS, "--hardware", "8xTPU"), "--hardware 8xTPU"),
        ((*NUMBERS, "--price", "much", "--hardware", "A100"), "--price much"),
        ((*NUMBERS, "--bag-size", "4"), "belong together"),
        ((*NUMBERS, "--bag-size", "4", "--ratio", "1"), "without recovery"),
        ((*NUMBERS, "--calibrate"), "give a recipe that can run here"),
        ((*NUMBERS, "--set", "train.lr=1"), "without a recipe it would be ignored"),
        ((TINY, "--params", "3B"), "--params would be ignored"),
        (("recipes/none.toml",), "cannot be read"),
        ((*NUMBERS, "--compared", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code != 0
    assert message in f"{result.output}{result.exception}"


def test_a_problem_ends_with_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "superpose", "plan", "--params", "3B", "--tokens", "none"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("superpose: --tokens none")
