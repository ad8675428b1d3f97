"""What the documentation shows is what the code takes: samples run, commands parse, links lead somewhere.

Every line that begins with `superpose` is parsed as it stands, and its recipe loaded, up to the work itself;
`test_commands.py` carries it out.
"""

import importlib
import math
import re
import shlex

import pytest
import torch
from typer.testing import CliRunner

from superpose import cli
from tests.conftest import make_model
from tests.documented import COMMANDS, OTHERS, PAGES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = [
    code
    for page in (
        "docs/integrations.md",
        "docs/conform.md",
        "docs/planning.md",
        "docs/multi_token.md",
        "docs/mixture.md",
        "docs/api/train.md",
    )
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("code", SAMPLES)
def test_its_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "documentation", "exec"), {})  # our own text


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_exist_and_their_settings_are_valid(command, monkeypatch):
    """Everything up to the work itself: names, options and the recipe's values."""
    loaded = []

    class ReachedError(Exception):
        pass

    def reached(*arguments, **settings):
        loaded.append(arguments)
        raise ReachedError

    monkeypatch.chdir(ROOT)
    # A remote place is taken for a store without asking it.
    monkeypatch.setattr("superpose.data.config.is_store", lambda location: location.startswith("s3://"))
    for work in (
        # First, as importing them later would keep what stands in for it here.
        *(f"superpose.{module}.prepare" for module in ("compare.workflow", "tune.halving", "reproduce.reproduction")),
        "superpose.data.config.prepare",
        "superpose.report.page.write_report",
        "superpose.share.sampling.generate",
        "superpose.data.prepare.prepare_store",
        "superpose.data.prepare.train_on_sources",
        "superpose.data.store.TokenStore.open",
        "superpose.data.config.load_tokenizer",
        "superpose.plan.advisor.make_plan",
        "superpose.conform.load",
        "superpose.compare.compare_logs",
        "superpose.evaluate.workflow.load_models",
        "superpose.share.exporting.export",
        "superpose.share.importing.import_model",
        "superpose.runs.remove.plan_removals",
        # After all that import them, which would keep what stands in for them here.
        "superpose.runs.disk.find_runs",
        "superpose.runs.disk.open_run",
    ):
        monkeypatch.setattr(work, reached)
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert isinstance(result.exception, ReachedError), result.output


@pytest.mark.parametrize("command", OTHERS)
def test_its_other_commands_name_what_there_is(command, monkeypatch):
    """Launchers and scripts: the scripts are there, and what they start with `-m superpose` is a command of ours."""
    words = shlex.split(command)
    for word in words:
        assert not word.endswith(".py") or (ROOT / word).exists()
        assert not word.endswith(".toml") or word.startswith("my-") or (ROOT / word).exists()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    if "superpose" in words and "my-recipe.toml" not in words:
        test_its_commands_exist_and_their_settings_are_valid(shlex.join(words[words.index("superpose") :]), monkeypatch)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_its_headline_and_its_picture_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/images")
    claim = importlib.import_module("claim")
    assert claim.claim() == (ROOT / "docs/images/speedup.svg").read_text(encoding="utf-8")
    measured = claim.measured(claim.TEXTS["Python"])
    steps, longest = max(measured.items())
    assert longest.high is None
    end = longest.curve[-1][0] / steps
    text = " ".join(README.partition("## Install")[0].split())
    assert f"takes {longest.ratio:.2f} times as many steps" in text
    assert f"against {steps:,} steps of TST" in text
    assert f"(95 % interval {longest.low:.2f} to beyond {end:.1f}, where our runs end)" in text
    [described] = re.findall(r"!\[(.+)\]\(docs/images/speedup.svg\)", text)
    shown = re.findall(r"([\d.]+)(?: times the steps)? at ([\d,]+)", described)
    assert len(shown) == 3
    assert all(f"{measured[int(at.replace(',', ''))].ratio:.2f}" == ratio for ratio, at in shown)


@pytest.mark.parametrize("side", ["-", "+"])
def test_its_diff_is_of_a_loop_that_learns_before_and_after(side):
    """With rows and steps of a test; it adds three lines, as the heading says."""
    [diff] = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
    assert sum(line.startswith("+") for line in diff.splitlines()) == 3
    code = "\n".join(line[1:] for line in diff.splitlines() if not line or line[0] in (" ", side))
    model = make_model("llama")
    names = {
        "rows": [torch.arange(row, row + 17) % 50 for row in range(320)],
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "DataLoader": torch.utils.data.DataLoader,
    }
    exec(code.replace("10_000", "15").replace("1024", "16"), names)
    assert names["loss"] < math.log(50) - 0.5
