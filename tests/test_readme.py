"""What the documentation shows is what the code does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from superpose import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SAMPLES = [
    code
    for page in ("README.md", "docs/integrations.md", "docs/conform.md", "docs/planning.md")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.startswith("    superpose ")
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
    for work in (
        "superpose.data.config.prepare",
        "superpose.report.write.write_report",
        "superpose.generate.load_model",
        "superpose.data.prepare.prepare_store",
        "superpose.data.prepare.train_on_sources",
        "superpose.data.store.TokenStore.open",
        "superpose.plan.advisor.make_plan",
        "superpose.conform.implementation.load",
        "superpose.evaluate.places.load_subjects",
    ):
        monkeypatch.setattr(work, reached)
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert isinstance(result.exception, ReachedError), result.output


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
