import json
import os
import shutil
import time

import pytest
from typer.testing import CliRunner

from superpose import cli


def called(*arguments, answer=None, code=0):
    result = CliRunner().invoke(cli.app, ["runs", *map(str, arguments)], input=answer, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture
def folder(run, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "pool" / "abc")
    shutil.copytree(run, runs / "[red]two")
    recipe = json.loads((runs / "[red]two" / "config.json").read_text())
    recipe["superposition"]["ratio"] = 0.2
    (runs / "[red]two" / "config.json").write_text(json.dumps(recipe))
    then = time.time() - 7200
    for path in (*(runs / "pool" / "abc").iterdir(), *(runs / "[red]two").iterdir()):
        os.utime(path, (then, then))  # old enough for its age to stay the same in a test
    (runs / "demo").mkdir()
    (runs / "demo" / "tst").symlink_to("../pool/abc", target_is_directory=True)
    return runs


def test_without_a_command_runs_are_listed(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    text = called()
    assert text == called("list") == called("list", "runs")
    header, first, second = text.splitlines()
    assert header.split()[:4] == ["run", "state", "parameters", "steps"]
    assert first.startswith("runs/[red]two ")
    assert "s 4, r 0.2" in first
    assert second.startswith("runs/demo/tst ")
    assert "12,208" in second
    known = json.loads(called("--json"))
    assert [run["path"] for run in known] == ["runs/[red]two", "runs/demo/tst"]
    assert known[1]["names"] == ["runs/pool/abc"]
    assert called(folder / "demo" / "tst").count("\n") == 2
    (folder.parent / "empty").mkdir()
    assert called("empty") == "empty holds no runs\n"


def test_show(folder):
    text = called("show", folder / "[red]two")
    assert "finished" in text
    assert "ratio = 0.2" in text
    assert "checkpoint of step 8" in text
    known = json.loads(called("show", folder / "demo" / "tst", "--json"))
    assert known["recipe"]["superposition"]["ratio"] == 0.4
    assert known["result"]["raw_tokens"] > 0


def test_compare(folder):
    runs = folder / "[red]two", folder / "demo" / "tst"
    text = called("compare", *runs)
    assert "superposition.ratio" in text
    assert "Validation loss at equal FLOPs" in text
    known = json.loads(called("compare", *runs, "--json"))
    assert known["settings"] == {"superposition.ratio": [0.2, 0.4]}
    assert list(known["at_steps"]) == ["0", "8", "10", "20"]
    assert known["at_steps"]["20"][0] == known["at_steps"]["20"][1]


def test_remove_says_what_goes_and_asks(folder):
    arguments = "remove", folder / "pool" / "abc", "--runs", folder
    said = called(*arguments, answer="n\n", code=1)
    assert f"the run {folder / 'pool' / 'abc'}" in said
    assert "leads to it" in said
    assert said.endswith("nothing was removed\n")
    called(*arguments, answer="", code=1)  # nobody there to answer
    assert called(*arguments, "--dry-run").splitlines()[-1].endswith("would be freed")
    assert (folder / "pool" / "abc" / "result.json").is_file()
    assert called(*arguments, "--checkpoints", "--yes").splitlines()[-1].endswith("freed")
    assert not (folder / "pool" / "abc" / "checkpoints").exists()
    assert called(*arguments, answer="y\n").splitlines()[-1].endswith("freed")
    assert not (folder / "pool" / "abc").exists()
    assert (folder / "[red]two" / "result.json").is_file()
