"""A small part of the sweep in checks/fuzz, and what makes it worth believing: it finds what it looks for."""

import os
from pathlib import Path

import pytest
from checks.fuzz.judging import CANARY, watch_files
from checks.fuzz.samples import Samples
from checks.fuzz.targets import TARGETS, judge_input
from hypothesis import given, settings
from hypothesis import strategies as st

from superpose.errors import UserError
from superpose.files import read_json

# What transformers remarks of a damaged model is no error.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    watch_files()
    return Samples.make(tmp_path_factory.mktemp("samples") / "valid")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "work"


@pytest.mark.parametrize("target", TARGETS)
def test_any_input_is_accepted_or_refused_in_a_sentence(samples, work, target):
    # Each of these loads a model.
    @settings(max_examples=8 if target in ("export", "import", "evaluate") else 40)
    @given(seed=st.integers(0, 2**32))
    def judged(seed):
        outcome, said = judge_input(target, seed, samples, work)
        assert outcome != "finding", f"python -m checks.fuzz --target '{target}' --only {seed}\n{said}"

    judged()


def feed(act):
    return lambda samples, folder, rng: act(folder)


def refuse(message):
    raise UserError(message)


def crash(folder):
    raise KeyError("a bug")


def read_outside(folder):
    (folder / ".." / "outside" / "secret").read_text()


def write_through_a_link(folder):
    (folder / "link").symlink_to(folder.parent / "outside" / "secret")
    (folder / "link").write_text("changed")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (crash, "KeyError"),
        (read_outside, "was opened"),
        (write_through_a_link, "was changed"),
        (lambda folder: Path(CANARY).touch(), "was run"),
        (lambda folder: (folder / f".made.{os.getpid()}.tmp").touch(), "left behind"),
        (lambda folder: refuse(" "), "0 characters"),
        (lambda folder: refuse("Traceback (most recent call last)"), "Python's words"),
        (lambda folder: refuse("<class 'int'>"), "Python's words"),
    ],
)
def test_what_must_not_happen_is_found(samples, work, monkeypatch, act, said):
    monkeypatch.setitem(TARGETS, "bad", (feed(act), 1))
    outcome, found = judge_input("bad", 0, samples, work)
    assert outcome == "finding"
    assert said in found


def test_an_input_is_the_same_again(samples, work):
    for target in TARGETS:
        first, second = (judge_input(target, 7, samples, work) for _ in range(2))
        assert first == second


def test_the_page_shows_the_counts():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "robustness.md").read_text(encoding="utf-8")
    counts = read_json(root / "benchmarks" / "results" / "fuzz.json")
    assert list(counts) == list(TARGETS)
    for target, (_, inputs) in TARGETS.items():
        found = counts[target]
        assert sum(found.values()) == inputs
        assert found["finding"] == 0
        assert f"| {target} | {inputs:,} | {found['accepted']:,} | {found['refused']:,} |" in page
