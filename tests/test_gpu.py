"""The benchmark that a GPU runs in minutes, small on a CPU, and the page that it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu import page
from gpu.__main__ import PARTS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"


def measure(out, *arguments):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])
    command = [sys.executable, "-m", "gpu", "--small", "--out", str(out), *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    return measure(out, "--minutes", "0.5"), json.loads((out / "gpu.json").read_text())


def test_all_parts_end_and_what_they_check_is_right(small):
    done, results = small
    assert done.returncode == 0, done.stdout + done.stderr
    assert [part for part in PARTS if "took_seconds" not in results[part]] == []
    assert done.stdout.endswith("all parts ended, all that was checked is right\n")
    assert results["correctness"]["right"]
    assert results["sharded"]["right"]


def test_superposition_read_more_text_in_as_many_latents(small):
    ordinary, superposed = small[1]["training"]["rows"]
    assert ordinary["latents"] == superposed["latents"] == ordinary["raw_tokens"]
    assert superposed["raw_tokens"] == 1.9 * superposed["latents"]
    assert superposed["losses"][-1][1] < superposed["losses"][0][1] - 0.2  # it learns


def test_the_page_can_be_written(small):
    """As if the small results were a card's, which alone has memory and a data sheet."""
    results = json.loads(json.dumps(small[1]).replace('"peak_mb": null', '"peak_mb": 1.0'))
    results["device"] |= {"card": "A Card", "memory_gb": 80.0, "cuda": "13.0"}
    results["losses"] = {"failed": "RuntimeError: no such luck"}
    text = page.filled(results)
    assert "one **A Card** (80 GB)" in text
    assert "Nothing: RuntimeError: no such luck." in text
    assert "| gpt2-124m | 2 x 16 | superpose, s 4 |" in text


def test_a_part_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    import gpu.__main__ as command

    def fails(bench, text):
        raise RuntimeError("no such luck")

    monkeypatch.setitem(PARTS, "passes", fails)
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--out", str(tmp_path), "--parts", "passes,device"])
    assert command.main() == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["passes"]["failed"] == "RuntimeError: no such luck"
    assert results["device"]["torch"]
    assert capsys.readouterr().out.endswith("failed: passes\n")


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    import gpu.__main__ as command

    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    assert command.main() == 2
    assert "no GPU" in capsys.readouterr().err


def test_the_page_shows_what_was_measured():
    if not RESULTS.exists():
        assert "has not been measured" in page.PAGE.read_text(encoding="utf-8")
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert not results["small"]
    assert page.filled(results) in page.PAGE.read_text(encoding="utf-8")
