"""The tables of docs/results.md are those of the committed results, digit for digit."""

import json
from pathlib import Path

import pytest

import loss
from superpose.compare.comparison import Comparison
from superpose.reproduce.reproduction import Reproduction
from superpose.results.tables import markdown

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def tables():
    for path in sorted(RESULTS.glob("*/comparison.json")):
        yield from ((path.parent.name, table) for table in Comparison.load(path.parent).tables())
    for path in sorted(RESULTS.glob("*/reproduction.json")):
        for entry in Reproduction.load(path):
            yield path.parent.name, entry.tables()[0]


@pytest.mark.parametrize(("name", "table"), list(tables()))
def test_the_page_shows_the_table(name, table):
    title, header, rows = table
    text = markdown([("", header, rows)], "").strip()
    assert text in PAGE, f"{name}: {title}"


def test_every_result_is_there():
    wanted = {"english", "python", "python-16000", "reproduce-tiny"}
    assert {path.parent.name for path in RESULTS.glob("*/*.json")} >= wanted


@pytest.mark.parametrize("name", ["english", "python", "python-16000"])
def test_the_page_shows_the_verdict(name):
    assert Comparison.load(RESULTS / name).verdict() in PAGE.replace("\n", " ")


def test_the_page_of_the_loss_shows_its_shapes():
    made = loss.table(json.loads(loss.FILE.read_text())["results"])
    assert loss.PLACE.search(loss.PAGE.read_text(encoding="utf-8"))[0] == f"<!-- shapes -->\n{made}<!-- end -->"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.name)
def test_results_tell_nothing_of_the_machine(path):
    assert '"/' not in path.read_text(encoding="utf-8")  # a path from the root of some disk
