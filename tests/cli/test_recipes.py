from typer.testing import CliRunner

from superpose import cli
from superpose.recipes import NAMES, find_recipe


def test_it_lists_them_and_prints_one():
    listed = CliRunner().invoke(cli.app, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in listed] == list(NAMES)
    assert all(line.endswith(".") for line in listed)
    printed = CliRunner().invoke(cli.app, ["recipes", "cpu-tiny"]).output
    assert printed == find_recipe("cpu-tiny").read_text(encoding="utf-8")
