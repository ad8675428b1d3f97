"""What the documentation shows is what the code does.

Every line that begins with `superpose` is parsed, and its recipe loaded, up to the work itself. Those that take seconds
on a little text are carried out as well: all of the quick start, and of the other pages what `carried_out` says.
"""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from superpose import cli
from superpose.data.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SAMPLES = [
    code
    for page in ("README.md", "docs/integrations.md", "docs/conform.md", "docs/planning.md")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
]


def lines_of(page, start):
    """Lines of code that begin so, continued lines joined, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if re.match(rf"    (?:{start})\b", line)]


COMMANDS = list(dict.fromkeys(line for page in PAGES for line in lines_of(page, "superpose")))
OTHERS = list(dict.fromkeys(line for page in PAGES for line in lines_of(page, "torchrun|python|accelerate|make")))
QUICK_START = lines_of(ROOT / "docs/quickstart.md", "superpose")
SMALLER = {
    "--set data.max_megabytes=4": "--corpus texts/ --set data.val_fraction=0.2 --set data.val_megabytes=0.02",
    "--set data.corpus=store": "--set data.corpus=store --set train.batch_size=2 --set train.latents=32",
    "superpose prepare": "superpose prepare --val-fraction 0.2 --val-megabytes 0.02",
    "300": "30",
    "--vocab-size 32768": "--vocab-size 512",
    "--vocab-size 1024": "--vocab-size 512",
}
"""What is changed in a command before it is carried out: how much it computes, never what."""


def smaller(command):
    for shown, little in SMALLER.items():
        command = command.replace(shown, little)
    return command


def carried_out(command):
    verb = command.split()[1]
    if verb in ("prepare", "tokenizer", "data"):
        return " python " not in command  # all Python sources of the machine
    return verb in ("plan", "conform") and "--calibrate" not in command and "my_package" not in command


def run(command):
    return CliRunner().invoke(cli.app, shlex.split(command)[1:], catch_exceptions=False)


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
        "superpose.data.config.load_tokenizer",
        "superpose.plan.advisor.make_plan",
        "superpose.conform.implementation.load",
        "superpose.evaluate.places.load_subjects",
        "superpose.handover.export.export",
        "superpose.handover.take_in.take_in",
        "superpose.runs.remove.plan_removals",
        # After all that import them, which would keep what stands in for them here.
        "superpose.runs.disk.find_runs",
        "superpose.runs.disk.open_run",
    ):
        monkeypatch.setattr(work, reached)
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert isinstance(result.exception, ReachedError), result.output


@pytest.fixture(scope="module")
def place(cache, tmp_path_factory):
    """A directory with all that the pages' commands take as given, as small as it goes."""
    place = tmp_path_factory.mktemp("documented")
    (place / "recipes").symlink_to(ROOT / "recipes")
    texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sorted((ROOT / "src").rglob("*.py"))]
    for name in ("texts", "dump", "dclm"):
        (place / name).mkdir()
    for number, text in enumerate(texts):
        (place / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    (place / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    records = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (place / "dump/a.jsonl.gz").write_bytes(gzip.compress(records))
    (place / "dump/a.jsonl.zst").write_bytes(pa.compress(records, codec="zstd", asbytes=True))
    for name in ("web.parquet", "code.parquet", "dclm/a.parquet"):
        pq.write_table(pa.table({"text": [f"{name} {text}" for text in texts]}), place / name)
    ends = ["<|end|>", "<|end_of_text|>", "<|endoftext|>"]
    trained = train_tokenizer(texts, 400, ends)
    for name, end in (("my-tokenizer", ends[0]), ("llama-3-tokenizer", ends[1]), ("gpt2", ends[2])):
        trained.tokenizer.save(str(_made(place / name) / "tokenizer.json"))
        (place / name / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}), encoding="utf-8")
    shutil.copy(place / "my-tokenizer/tokenizer.json", place / "tokenizer.json")
    rows = [[*trained.tokenizer.encode(text).ids, trained.tokenizer.token_to_id(ends[2])] for text in texts]
    np.concatenate([np.array(row, dtype=np.uint16) for row in rows]).tofile(place / "tokens.bin")
    [sample] = re.findall(r"```python\n(.*?)\n\n\nfor ", (ROOT / "docs/conform.md").read_text("utf-8"), re.DOTALL)
    (place / "my_tst.py").write_text(sample, encoding="utf-8")
    return place


def _made(directory):
    directory.mkdir()
    return directory


def test_the_quick_start_ends_in_what_it_shows(place, monkeypatch):
    """All its commands, one after another, with a tenth of the steps; then its Python."""
    monkeypatch.chdir(place)
    for command in QUICK_START:
        result = run(smaller(command))
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert (place / "runs/first/report.html").exists()
    [code] = re.findall(r"```py\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(smaller(code), "quick start", "exec"), names)  # our own text
    assert names["model"].config.vocab_size == len(names["tokenizer"])


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in QUICK_START and carried_out(line)])
def test_its_quick_commands_do_their_work(command, place, monkeypatch):
    monkeypatch.chdir(place)
    if command.startswith("superpose data"):
        shutil.rmtree("store", ignore_errors=True)
        run("superpose prepare --val-fraction 0.2 texts/ --tokenizer bytes --out store")
    if out := re.search(r"--out (\S+)", command):
        shutil.rmtree(out[1], ignore_errors=True)
    result = run(smaller(command))
    # The sample of docs/conform.md makes one of the twelve errors, as the page says.
    assert result.exit_code == ("conform" in command), result.output
    assert not out or Path(out[1]).exists()


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
