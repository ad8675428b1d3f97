"""The planted errors still fit the code they are planted in; `make mutants` shows that tests notice them."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("mutants", ROOT / "checks" / "mutants.py")
mutants = importlib.util.module_from_spec(spec)
sys.modules["mutants"] = mutants  # dataclasses look their module up
spec.loader.exec_module(mutants)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_changes_the_code(mutant):
    text = (ROOT / "src" / "superpose" / mutant.file).read_text(encoding="utf-8")
    assert mutant.old in text
    assert mutant.old != mutant.new
    assert (ROOT / mutant.tests).exists()


def test_all_twelve_errors_are_planted():
    assert {mutant.error for mutant in mutants.MUTANTS} == set(range(1, 13))
