"""Every command of the documentation does its work: on a little text, with a tiny model and few steps.

What is changed in a command is how much it computes, never what. Each runs in a folder of its own in which lies all
that the pages take as given.
"""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from superpose import cli
from superpose.compare import compare_logs
from superpose.data.store import is_store
from superpose.data.tokenizer import train_tokenizer
from superpose.recipes import find_recipe
from tests.documented import COMMANDS, OTHERS, ROOT, lines_of

QUICK_START = lines_of(ROOT / "docs/quickstart.md", "superpose")
VARIANTS = sorted((ROOT / "docs/variants").glob("*.md"))
LIKE_OTHERS = [line for page in VARIANTS[1:] for line in lines_of(page, "superpose compare")]
"""Of the pages on variants, whose commands differ in a setting, one is carried out; test_readme reads the others'."""
TEXT = "--set data.val_fraction=0.2 --set data.val_megabytes=0.002 --set data.vocab_size=400"
MODEL = "{hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=false}"
TINY = (
    f"--set train.batch_size=2 --set train.latents=32 --set 'model.config={MODEL}' --set train.warmup_steps=2"
    " --set train.eval_every=1000 --set train.precision=float32 --set train.track=[] --set train.threads=1"
)
TRAINING = ("train", "compare", "tune", "reproduce")


def smaller(command):
    """The same on a few kilobytes, with few steps where there are thousands, and two seeds and rates at most."""
    verb = command.split()[1]
    # A place in this process stands in for those on a network.
    command = command.replace("s3://", "memory://")
    if "prepare 'memory:" in command:
        command += " --processes 1"
    if verb == "prepare":
        command = command.replace(" python ", " texts/ ") + " --val-fraction 0.2 --val-megabytes 0.002"
    if verb in ("prepare", "tokenizer"):
        return re.sub(r"--vocab-size \d+", "--vocab-size 400", command)
    if verb in ("export", "generate"):
        return re.sub(r"tokens \d+", "tokens 4", command.replace("--checkpoint 2000", "--checkpoint 18"))
    if "--logs" in command or (verb not in TRAINING and "--calibrate" not in command):
        return command
    if verb == "tune":
        command = re.sub(r"--steps \d+", "", re.sub(r"--trials \d+", "--trials 4", command))
        command = re.sub(r"--budget \d+", "--budget 6", command)
    most = 2 if verb == "compare" and "--budgets" not in command else 1
    if verb == "compare" and "--seeds" not in command:
        command += " --seeds 1,2"
    command = re.sub(
        r"(--(?:seeds|lrs)) (\S+)", lambda found: f"{found[1]} {','.join(found[2].split(',')[:most])}", command
    )
    command = re.sub(
        r"(--(?:steps|budgets|ordinary-budgets)|train\.steps)([ =])(\S+)",
        lambda found: found[1] + found[2] + re.sub(r"\d{4,}", lambda steps: str(int(steps[0]) // 200), found[3]),
        command,
    )
    command = re.sub(r"--set train\.track=\S+ ?", "", command)
    if "store" not in command:
        corpus = "data.corpus=texts/" if verb == "plan" or "--corpus" not in command else ""
        command += f" {TEXT} {corpus and '--set ' + corpus}"
    if "--steps" not in command and "train.steps" not in command:
        # An experiment with too little text for its run still has to have enough for a step of bags.
        command += f" --set train.steps={60 if verb == 'reproduce' else 40}"
    rows = " --set train.batch_size=4" if "ordinary_rows=0.25" in command else ""  # a quarter of them is a whole number
    return f"{command} {TINY}{rows}"


@pytest.fixture(scope="module")
def given(tmp_path_factory, run, compared):
    """What the pages take as given, as small as it goes; folders of text are linked to, as each test takes a copy."""
    given, linked = tmp_path_factory.mktemp("documented"), tmp_path_factory.mktemp("linked")
    for name in ("examples", "benchmarks", "docs"):
        (given / name).symlink_to(ROOT / name)
    # Documents so short that two kilobytes of them can be held out: validating is most of a run of few steps.
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))[::3])
    texts = [sources[start : start + 300] for start in range(0, 150_000, 300)]
    for name in ("dump", "dclm", "elsewhere", "path", "my_package", "a", "b"):
        (given / name).mkdir()
    for name in ("texts", "my-texts", "src"):
        (linked / name).mkdir()
        (given / name).symlink_to(linked / name)
        for number, text in enumerate(texts):
            (linked / name / f"{number}.{'py' if name == 'src' else 'txt'}").write_text(text, encoding="utf-8")
    (given / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    records = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    for name in ("news.jsonl", "english.jsonl"):
        (given / name).write_bytes(records)
    (given / "dump/a.jsonl.gz").write_bytes(gzip.compress(records))
    (given / "dump/a.jsonl.zst").write_bytes(pa.compress(records, codec="zstd", asbytes=True))
    for name in ("web.parquet", "code.parquet", "dclm/a.parquet"):
        pq.write_table(pa.table({"text": [f"{name} {text}" for text in texts]}), given / name)
    ends = ["<|end|>", "<|end_of_text|>", "<|endoftext|>"]
    trained = train_tokenizer(texts, 400, ends)
    for name, end in (("my-tokenizer", ends[0]), ("llama-3-tokenizer", ends[1]), ("gpt2", ends[2])):
        (given / name).mkdir()
        trained.tokenizer.save(str(given / name / "tokenizer.json"))
        (given / name / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}), encoding="utf-8")
    shutil.copy(given / "my-tokenizer/tokenizer.json", given / "tokenizer.json")
    rows = [[*trained.tokenizer.encode(text).ids, trained.tokenizer.token_to_id(ends[2])] for text in texts]
    np.concatenate([np.array(row, dtype=np.uint16) for row in rows]).tofile(given / "tokens.bin")
    subjects = dict(
        re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs/conform.md").read_text("utf-8"), re.DOTALL)
    )
    for name in ("my_tst.py", "my_loop.py"):
        (given / name).write_text(subjects[name], encoding="utf-8")
    training = subjects["my_tst.py"].replace("def step", "def compute_loss")
    (given / "my_package/training.py").write_text(training, encoding="utf-8")

    for seed in (1, 2):
        curve = [(100 * step, 5 - seed / 10 - step / 10) for step in (1, 2, 3)]
        lines = "".join(f"{tokens},{loss}\n" for tokens, loss in curve)
        (given / f"a/seed{seed}.csv").write_text(f"tokens,val_loss\n{lines}", encoding="utf-8")
        records = [json.dumps({"tokens": tokens, "val_loss": loss - 0.1 * seed}) for tokens, loss in curve]
        (given / f"b/seed{seed}.jsonl").write_text("\n".join(records), encoding="utf-8")

    named, _ = compared
    shutil.copytree(named.parent, given / "runs", symlinks=True)
    arms = (f"ordinary={given}/a/*.csv", f"tst={given}/b/*.jsonl")
    compare_logs(arms, "val_loss", "tokens", runs=given / "runs", name="theirs")
    (given / "runs/named").rename(given / "runs/demo")
    shutil.copytree(given / "runs/demo", given / "runs/mine", symlinks=True)
    for name, path in ("one", run), ("tst", run), ("ordinary", named / "ordinary-20-seed1"):
        shutil.copytree(path.resolve(), given / "runs" / name)
    (given / "runs/demo/tst-8000-seed1").symlink_to((named / "tst-20-seed1").readlink())
    shutil.copytree(run / "model", given / "my-model")
    shutil.copytree(run / "model", given / "path/to/model")
    return given


@pytest.fixture
def place(given, tmp_path, memory, monkeypatch):
    """A copy of it, in which the test is."""
    memory.pipe("/bucket/texts/a.jsonl.zst", (given / "dump/a.jsonl.zst").read_bytes())
    place = tmp_path / "place"
    shutil.copytree(given, place, symlinks=True)
    monkeypatch.chdir(place)
    return place


def done(command):
    """What becomes of a command, in this process, where nothing is yet of what it makes; any question is answered."""
    if "--resume" not in command and (made := re.search(r"(?:--out|export \S+) (\S+)", command)):
        shutil.rmtree(made[1], ignore_errors=True)
    return CliRunner().invoke(cli.app, shlex.split(smaller(command))[1:], input="y\n", catch_exceptions=False)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in (*QUICK_START, *LIKE_OTHERS)])
def test_it_does_its_work(command, place):
    if "data.corpus=store" in command or "--corpus store" in command or command.startswith("superpose data"):
        sources = "web.parquet code.parquet --names web,code" if "mixture=" in command else "texts/"
        assert done(f"superpose prepare {sources} --tokenizer my-tokenizer/ --out store").exit_code == 0
    if re.search("corpus=s3|show s3", command):
        assert done("superpose prepare texts/ --tokenizer my-tokenizer/ --out s3://bucket/store").exit_code == 0
    if re.search("(generate|import|evaluate) s3", command):
        assert done("superpose export runs/one s3://bucket/my-model").exit_code == 0
    if "runs/reproduce-tiny" in command:
        assert done("superpose reproduce figure6 --scale tiny").exit_code == 0
    if "--resume" in command:
        assert done(command.replace(" --resume", "")).exit_code == 0
    result = done(command)
    assert result.exit_code == 0, result.output
    if out := re.search(r"--out (\S+)", command):
        assert is_store(out[1].replace("s3://", "memory://")) if "s3://" in out[1] else Path(out[1]).exists()


def test_the_quick_start_ends_in_what_it_shows(place):
    """All its commands, one after another; then its Python."""
    for command in QUICK_START:
        result = done(command)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert Path("runs/demo/report.html").exists()
    [code] = re.findall(r"```py\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(code, "quick start", "exec"), names)  # our own text
    assert names["model"].config.vocab_size == len(names["tokenizer"])


@pytest.mark.parametrize("command", [command for command in OTHERS if "-m superpose train" in command])
def test_ranks_that_torchrun_starts_train(command, place):
    """Two of them on this machine, wherever and however many the page has."""
    Path("my-recipe.toml").symlink_to(find_recipe("cpu-tiny"))
    launcher, training = command.split(" -m ")
    launcher = re.sub(r"--nnodes \d+|--rdzv-\S+ \S+", "", launcher).replace("torchrun", "-m torch.distributed.run")
    launcher = re.sub(r"--nproc-per-node \d+", "--nproc-per-node 2 --standalone", launcher)
    training = training.replace("/shared/", "").replace("replicas=8", "replicas=2")
    settings = (
        "--set train.device=cpu --set train.compile=false --set train.accumulate=1 --set model.architecture=llama"
    )
    settings += " --set parallel.shard_gradients=false"
    settings += " --set data.corpus=texts/ --set data.tokenizer='' --set data.end_of_text=''"
    command = f"{launcher} -m {smaller(training)} {settings}"
    ended = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (Path(re.search(r"--out (\S+)", training)[1]) / "result.json").exists()
