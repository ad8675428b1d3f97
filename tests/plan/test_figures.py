"""docs/planning.md has the figures that benchmarks/ wrote, and the paper's Table 1 comes out of its recipes."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_page_has_the_committed_figures(benchmark):
    evidence, plan = benchmark("evidence"), benchmark("plan")
    results = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in ("evidence", "plan")
    }
    tables = {
        "validation": evidence.validation(results["evidence"]["left_out"]),
        "ours": evidence.ours(),
        "heights": evidence.heights(),
        "regrets": evidence.regrets(),
        "memory": plan.memory_table(results["plan"]["memory"]),
    }
    page = (ROOT / "docs" / "planning.md").read_text()
    assert all(f"<!-- {name} -->" in page for name in tables)
    assert evidence.filled(page, tables) == page


@pytest.mark.error(n=12)
def test_table_1_comes_out_of_its_recipes(benchmark):
    rows = benchmark("plan").table1()
    assert len(rows) == 12
    for row in rows:
        # The table rounds to 1 % or so, and to one digit (2T).
        assert row.raw_tokens == pytest.approx(row.published_tokens, rel=0.03)
        # One pair of the paper's own runs differs by more: 49,983 and 125,000 steps took 4,768 and 12,311 hours.
        outlier = row.model == "10B-A1B" and row.steps == 49_983
        assert row.hours_ratio == pytest.approx(row.published_ratio, rel=0.035 if outlier else 0.03)
