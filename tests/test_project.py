"""The project's own files say what is so: workflows, citation, lists of scripts."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import superpose

ROOT = Path(__file__).parents[1]
YAML = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_it_is_valid(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_all_of_ci_on_the_versions_that_are_promised():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    test = workflow["jobs"]["test"]
    assert [step["run"] for step in test["steps"] if "run" in step] == [".ci/run"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [name.split(" :: ")[-1] for name in project["classifiers"] if "Python :: 3." in name]
    assert test["strategy"]["matrix"]["python"] == promised


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == superpose.__version__
    assert "2605.06546" in citation["preferred-citation"]["identifiers"][0]["value"]


@pytest.mark.parametrize("folder", ["benchmarks", "checks"])
def test_every_script_is_listed(folder):
    page = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    listed = {name.removesuffix(".py") for name in re.findall(r"^\| ([\w.]+) \|", page, re.MULTILINE)} - {"script"}
    scripts = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "measure"}
    packages = {path.parent.name for path in (ROOT / folder).glob("*/__main__.py")}
    assert listed == scripts | packages
