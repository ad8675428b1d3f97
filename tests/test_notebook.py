"""The notebook's cells run from top to bottom, on a little text."""

import contextlib
import io
import json
import re
from unittest import mock

import pytest

from tests.conftest import trained
from tests.documented import ROOT

PATH = ROOT / "examples" / "first_run.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TINY = [
    *("data.vocab_size=300", "data.val_fraction=0.1", "data.val_megabytes=0.003", "train.steps=40"),
    *("train.warmup_steps=2", "train.batch_size=2", "train.eval_every=10", "train.threads=1"),
]


@pytest.fixture(scope="module")
def carried_out(cache, documents, tmp_path_factory):
    """What all cells print and name; the one that chooses chooses little, and runs train in this process."""
    import matplotlib.pyplot

    names, printed = {}, io.StringIO()
    with (
        mock.patch("superpose.compare.workflow.train_all", lambda *of: trained(*of[:3])),
        contextlib.chdir(tmp_path_factory.mktemp("notebook")),
        contextlib.redirect_stdout(printed),
    ):
        for cell in CELLS:
            exec(compile(cell, "notebook", "exec"), names)  # our own text
            if cell.startswith("STEPS = "):
                names["SETTINGS"] += [f"data.corpus={documents}", *TINY]
    drawn = {line.get_label(): line.get_xdata() for line in names["axes"].get_lines()}
    matplotlib.pyplot.close(names["figure"])
    return printed.getvalue(), drawn


@pytest.fixture
def printed(carried_out):
    return carried_out[0]


def test_it_trains_both_ways_and_says_which_was_better(printed):
    assert re.search(r"TST (won|lost) at seed 1", printed)


def test_it_draws_both_curves_and_the_switch(carried_out):
    drawn = carried_out[1]
    assert list(drawn["ordinary"]) == [10, 20, 30, 40]
    assert list(drawn["switch"]) == [4, 4]
    assert set(drawn["ordinary"]) <= set(drawn["tst"])


def test_both_models_write(printed):
    losses = re.findall(r"^--- (ordinary|tst), (\d\.\d{3}) nats per token\ndef ", printed, re.MULTILINE)
    assert [name for name, _ in losses] == ["ordinary", "tst"]
    assert all(float(loss) < 5.8 for _, loss in losses)  # log of the vocabulary is 5.7


def test_the_loop_of_ones_own_switches_and_learns(printed):
    steps = re.findall(r"^step (\d+): bags of (\d), loss ([\d.]+)$", printed, re.MULTILINE)
    assert [int(step) for step, _, _ in steps] == list(range(9, 100, 10))
    assert [int(size) for _, size, _ in steps] == [4] * 3 + [1] * 7
    losses = [float(loss) for _, _, loss in steps]
    assert losses[2] < losses[0]
    assert losses[9] < losses[3]


def test_it_shows_the_lines_that_it_runs():
    text = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    [diff] = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    assert len(added) == 3
    assert all(line in CELLS[-1] for line in added)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (PATH.parent / target).exists(), target


def test_it_holds_no_output_and_what_readers_of_notebooks_need():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert cell["metadata"] == {}
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
