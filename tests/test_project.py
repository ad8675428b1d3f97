"""The project's own files say what is so: workflows, citation, lists of scripts."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

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
    scripts = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "cluster", "measure", "tiny_models"}
    packages = {path.parent.name for path in (ROOT / folder).glob("*/__main__.py")}
    assert listed == scripts | packages


def test_the_image_is_given_what_an_installation_reads_and_nothing_else():
    """What COPY takes is what .dockerignore lets through, and all that the wheel's build and pip name."""
    lines = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [name for name, _ in steps] == [
        *("ARG", "FROM", "ARG", "ARG", "COPY", "COPY", "RUN", "ENV", "WORKDIR", "ENTRYPOINT", "CMD")
    ]
    copied = {path for name, rest in steps if name == "COPY" for path in rest.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    read_by_setup = set(re.findall(r'ROOT / "([\w.]+)', (ROOT / "setup.py").read_text(encoding="utf-8")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"setup.py", *read_by_setup, *project["license-files"], "constraints.txt"}
    assert {path.partition("/")[0] for path in needed} == copied
    assert dict(steps)["ARG"].partition("=")[2] in project["optional-dependencies"]  # the last of them
    base = next(rest for name, rest in steps if name == "ARG").removeprefix("BASE=python:").partition("-")[0]
    assert f"Programming Language :: Python :: {base}" in project["classifiers"]


def test_the_lowest_versions_are_those_of_the_project():
    """`make test-lowest` installs what pyproject.toml promises, for the command, reports, trackers and Trainer."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    promised = [
        *project["dependencies"],
        *(one for name in ("train", "report", "track", "huggingface") for one in extras[name]),
    ]
    bounds = dict(one.split(">=") for one in promised if ">=" in one)
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(pin) for name, pin in pins.items()} == {name: Version(low) for name, low in bounds.items()}
