"""What a user installs: a wheel in an empty environment, first the core alone, then with the extras; and the sdist.

`make test-wheel` runs it: it installs PyTorch, so it stands apart. The tests build on one another, in order.
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = """
import sys, types, torch, superpose
from torch import nn
from superpose import Schedule, SuperposedLM, fold, window_length
from superpose.core.parts import SuperposedParts

assert all(getattr(superpose, name) is not None for name in superpose.__all__)

class Body(nn.GRU):
    def forward(self, inputs_embeds, **_):
        return types.SimpleNamespace(last_hidden_state=super().forward(inputs_embeds)[0])

class Causal(nn.Module):
    "What SuperposedLM asks of a model of transformers, without transformers."
    def __init__(self):
        super().__init__()
        self.config, self.embedding = types.SimpleNamespace(), nn.Embedding(50, 16)
        self.base_model, self.head = Body(16, 16, batch_first=True), nn.Linear(16, 50)
    def get_input_embeddings(self):
        return self.embedding
    def get_output_embeddings(self):
        return self.head

model, schedule = Causal(), Schedule(total_steps=4, bag_size=2, ratio=0.5)
parts = SuperposedParts(model.embedding, lambda x: model.base_model(x).last_hidden_state, model.head)
for step in range(4):
    s = schedule.bag_size_at(step)
    window = torch.randint(0, 50, (2, window_length(8, s)))
    whole, apart = SuperposedLM(model)(window, s), parts(window, s)
    assert torch.allclose(whole.loss, getattr(apart, "loss", apart))
    whole.loss.backward()
others = {name.partition(".")[0] for name in sys.modules} & {"transformers", "pydantic", "scipy", "typer", "pyarrow"}
assert not others, others
"""


def said(*command, code=0, cwd=None, path=""):
    """What a command prints, without what this environment would lend it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, cwd=cwd, timeout=540
    )
    assert ended.returncode == code, f"{command}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    said(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An environment with nothing in it."""
    folder = tmp_path_factory.mktemp("environment")
    said(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def install(empty, built):
    def install(extras=""):
        pip = (sys.executable, "-m", "pip", "--python", empty / "python", "--quiet", "--disable-pip-version-check")
        said(*pip, "install", "--no-compile", "-c", ROOT / "constraints.txt", f"{built[1]}{extras}")

    return install


@pytest.fixture
def text(corpus, tmp_path, monkeypatch):
    """A folder far from the repository, with a little text."""
    monkeypatch.chdir(tmp_path)
    return corpus


def test_the_wheel_holds_the_package_and_what_it_reads(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    package = ROOT / "src" / "superpose"
    ours = {
        path.relative_to(ROOT / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= names
    assert {name.partition("/")[0] for name in names - ours} == {f"superpose-{version(built)}.dist-info"}


def version(built):
    return re.fullmatch(r"superpose-(.+)\.tar\.gz", built[0].name)[1]


def test_the_core_needs_torch_and_numpy_alone(install, empty):
    install()
    said(empty / "python", "-c", CORE, cwd=empty)


def test_the_plain_example_needs_no_more(empty, text, tmp_path):
    said(empty / "python", ROOT / "examples/plain_pytorch.py", text, "--steps", "4", cwd=tmp_path)


@pytest.mark.parametrize("command", [["superpose", "train", "cpu-tiny", "--out", "run"], ["python", "-m", "superpose"]])
def test_a_command_names_the_extra_it_needs(command, empty, tmp_path):
    told = said(empty / command[0], *command[1:], code=2, cwd=tmp_path)
    assert told == "superpose: this needs typer, which is not installed; pip install 'superpose[train]'\n"


def test_compare_runs_and_a_recipe_is_found_by_name(install, empty, text, tmp_path):
    install("[train]")
    tiny = [
        *("--steps", "10", "--corpus", text, "--jobs", "1", "--set", "data.vocab_size=300"),
        *("--set", "data.val_fraction=0.1", "--set", "data.val_megabytes=0.02", "--set", "train.batch_size=2"),
        *("--set", "train.warmup_steps=2", "--set", "train.latents=32", "--set", "train.threads=1"),
    ]
    told = said(empty / "superpose", "compare", "cpu-small", *tiny, cwd=tmp_path)
    assert "validation loss, nats per token" in told
    assert (tmp_path / "runs/cpu-small/loss.png").stat().st_size > 1000
    steps = ["--set", "train.steps=4"]
    told = said(empty / "superpose", "train", "cpu-tiny", "--out", "run", *steps, *tiny[2:4], *tiny[6:], cwd=tmp_path)
    assert "model: run/model" in told
    told = said(empty / "superpose", "report", "runs/cpu-small", code=2, cwd=tmp_path)
    assert told == "superpose: this needs plotly, which is not installed; pip install 'superpose[report]'\n"
    install("[train,report]")
    said(empty / "superpose", "report", "runs/cpu-small", cwd=tmp_path)
    assert (tmp_path / "runs/cpu-small/report.html").exists()


def test_the_sdists_tests_run(built, tmp_path):
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"superpose-{version(built)}"
    tracked = said("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / ".git").exists() else []
    missing = [name for name in tracked if not (source / name).exists() and name not in (".gitignore", "recipes")]
    assert not missing
    chosen = ["tests/core/test_fold.py", "tests/recipes", "tests/test_init.py", "tests/test_results.py"]
    told = said(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, cwd=source, path=source / "src")
    assert "100%" in told


def test_the_package_page_has_absolute_addresses_of_files_that_are_there():
    spec = spec_from_file_location("setup", ROOT / "setup.py")
    setup = module_from_spec(spec)
    spec.loader.exec_module(setup)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = setup.package_page(readme, "https://code.example/o/superpose/", "v1.0")
    assert "![" in readme
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", page)
    ours = [(mark, target) for mark, target in targets if "code.example" in target]
    assert len(ours) > 5
    for mark, target in ours:
        place = target.removeprefix(f"https://code.example/o/superpose/{'raw' if mark else 'blob'}/v1.0/")
        assert (ROOT / place.partition("#")[0]).exists(), target
    assert all(re.match(r"[a-z]+:|#", target) for _, target in targets)
    picture = '<img src="docs/images/logo.svg" width="80">'
    assert "o/s/raw/v1/docs/images/logo.svg" in setup.package_page(picture, "o/s", "v1")
    assert setup.package_page(readme, "", "v1.0") == readme
