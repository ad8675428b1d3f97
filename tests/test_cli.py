import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from superpose.cli import app
from superpose.files import one_at_a_time
from superpose.recipes import NAMES, find_recipe
from tests.conftest import suggested
from tests.train.test_loop import changed

TINY = [
    "--set=train.batch_size=4",
    "--set=train.latents=16",
    "--set=train.warmup_steps=2",
    "--set=train.eval_every=10",
    "--set=data.vocab_size=300",
    "--set=data.val_fraction=0.1",
    "--set=data.val_megabytes=0.003",
    "--set=model.config.hidden_size=16",
]


def superpose(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "superpose", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=240
    )


def inside(*arguments):
    """The same in this process, which has imported everything already."""
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="superpose", catch_exceptions=False)


def test_help_reads_well():
    text = inside("--help").stdout
    commands = ("compare", "reproduce", "report", "train", "prepare", "tokenizer train", "data show", "data verify")
    commands += ("export", "import", "runs list", "runs show", "runs compare", "runs remove")
    for command in (*commands, "generate", "evaluate"):
        assert command.split()[0] in text
        help_text = inside(*command.split(), "--help").stdout
        assert "Usage: superpose" in help_text
        assert "None" not in help_text


def test_a_process_ends_with_the_sentence_and_the_code():
    done = superpose("data", "verify", "no/such")  # of all commands the one that needs least to start
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "superpose: no/such/manifest.json cannot be read (No such file or directory); check the path\n"
    )


@pytest.mark.parametrize(("ranks", "code"), [("1", -signal.SIGABRT), ("2", 0)])
def test_a_rank_ends_before_its_interpreter_does(ranks, code):
    """What the threads of a process group may do to a process while its interpreter ends is done by an object here."""
    script = (
        "import atexit, os, sys\nfrom superpose.__main__ import main\n"
        "class Late:\n    end = os.abort\n    def __del__(self): self.end()\n"
        "late, sys.argv = Late(), ['superpose', '--version']\natexit.register(print, 'closed')\nmain()"
    )
    environment = {**os.environ, "WORLD_SIZE": ranks}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert code or done.stdout.endswith("closed\n")


def test_help_needs_no_pytorch():
    code = (
        "import sys\nfrom superpose.cli import app\n"
        "try: app(['compare', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_recipes_are_listed_and_printed():
    listed = CliRunner().invoke(app, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in listed] == list(NAMES)
    assert all(line.endswith(".") for line in listed)
    printed = CliRunner().invoke(app, ["recipes", "cpu-tiny"]).output
    assert printed == find_recipe("cpu-tiny").read_text(encoding="utf-8")


def test_compare_train_and_generate_end_to_end(documents, tmp_path, monkeypatch, refused):
    done = superpose("compare", "--corpus", documents, "--steps", 20, "--seeds", "1,2", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("validation loss", "bits per byte", "raw tokens read", "training FLOPs", "epochs", "95 % interval"):
        assert word in done.stdout
    assert "are finished already" not in done.stdout
    demo = tmp_path / "runs" / "demo"
    assert {"comparison.json", "summary.md", "loss.png", "tst-20-seed2"} <= {path.name for path in demo.iterdir()}

    said = inside("generate", demo / "tst-20-seed1", "the alpha", "--max-new-tokens", 4)
    assert said.exit_code == 0, said.stderr
    assert said.stdout.startswith("the alpha")
    assert said.stdout == inside("generate", demo / "tst-20-seed1", "the alpha", "--max-new-tokens", 4).stdout
    assert "tst-20-seed1" in refused("generate", demo, "the alpha")
    assert "trained on 16" in refused("generate", demo / "tst-20-seed1", "the alpha " * 20)

    monkeypatch.chdir(tmp_path)
    again = inside("compare", "--corpus", documents, "--steps", 20, "--seeds", "1,2", *TINY)
    assert "4 of 4 runs are finished already" in again.stdout

    assert suggested(again.stdout) == ["report", "runs/demo"]
    said = inside(*suggested(again.stdout), "--out", tmp_path / "report.html")
    assert said.exit_code == 0, said.stderr
    assert "report.html" in said.stdout
    assert {"report.html", "report.md", "report-1.png"} <= {path.name for path in tmp_path.iterdir()}

    # The same arm alone, from the configuration the comparison wrote, ends with the same bits.
    alone = inside("train", demo / "tst-20-seed1" / "config.json", "--out", tmp_path / "alone")
    assert alone.exit_code == 0, alone.stderr
    evaluated = inside(*suggested(alone.stdout), "--max-megabytes", 0.001)
    assert evaluated.exit_code == 0, evaluated.stderr
    assert inside(*suggested(evaluated.stdout), "--max-new-tokens", 2).exit_code == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "alone/model" / name).read_bytes() == (demo / "tst-20-seed1/model" / name).read_bytes()
    again = ["train", demo / "tst-20-seed1" / "config.json", "--out", tmp_path / "alone"]
    assert "--resume" in refused(*again)
    with one_at_a_time(tmp_path / "alone"):
        assert "is being trained by another process" in refused(*again, "--resume")


def test_prepare_verify_and_train_on_a_store(documents, tmp_path, refused):
    made = inside("tokenizer", "train", documents, "--vocab-size", 300, "--out", tmp_path / "tokenizer")
    assert "300 entries" in made.stdout, made.stderr
    assert suggested(made.stdout)[:4] == ["prepare", str(documents), "--tokenizer", str(tmp_path / "tokenizer")]
    options = ["--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "store"]
    options += ["--val-fraction", 0.1, "--val-megabytes", 0.003]
    done = inside("prepare", documents, *options)
    assert done.exit_code == 0, done.stderr
    assert "vocabulary 300" in done.stdout
    assert suggested(done.stdout) == ["compare", "--corpus", str(tmp_path / "store")]
    assert inside("data", "show", tmp_path / "store").stdout in done.stdout
    assert "as they were written" in inside("data", "verify", tmp_path / "store").stdout

    small = [option for option in TINY if "data." not in option]
    arguments = ["train", "cpu-tiny", "--out", tmp_path / "run", f"--set=data.corpus={tmp_path / 'store'}"]
    run = inside(*arguments, "--set=train.steps=20", *small)
    assert run.exit_code == 0, run.stderr
    assert "data.vocab_size cannot apply" in refused(*arguments, "--set=data.vocab_size=512", cwd=".")

    assert "holds something else" in refused("prepare", documents, *options, "--seed", 5)
    shard = tmp_path / "store" / "train-00000.tokens"
    shard.write_bytes(b"\x07\x01" + shard.read_bytes()[2:])
    assert "train-00000.tokens was altered" in refused("data", "verify", tmp_path / "store")


def test_generate_refuses_what_cannot_generate(recipe, store, tmp_path, refused):
    from superpose.train.loop import train

    ended = tmp_path / "ended"
    train(changed(recipe, "superposition", ratio=1.0), store, ended)
    assert "ended inside superposition" in refused("generate", ended, "the")
    (ended / "result.json").unlink()
    assert "not finished" in refused("generate", ended, "the")
    assert "not a run" in refused("generate", tmp_path / "none", "the")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--set", "train.lrr=1"], "did you mean 'train.lr'"),
        (["compare", "--ratio", "0"], "only one phase"),
        (["compare", "--ratio", "1.5"], "superposition.ratio"),
        (["compare", "--stages", "8:0.1,oops"], "oops"),
        (["compare", "--stages", "8:0.1", "--ratio", "0.1"], "leave out"),
        (["compare", "--seeds", "1,x"], "--seeds 1,x: expected whole numbers with commas between, such as 1,2,3"),
        (["compare", "--seeds", "1,1"], "stands there twice"),
        (["compare", "--budgets", "1e3"], "--budgets 1e3: expected whole numbers"),
        (["compare", "--ordinary-budgets", "auto,many"], "--ordinary-budgets many"),
        (["compare", "--budgets", "50"], "with train.steps = 50"),
        (["compare", "--lrs", "high"], "--lrs high: expected numbers"),
        (["compare", "--lrs", "0"], "above 0"),
        (["compare", "--name", "pool"], "choose another name"),
        (["reproduce", "table9"], "no experiment 'table9'; choose one of table1"),
        (["reproduce", "--scale", "paper"], "add --recipe"),
        (["reproduce", "table1", "--set", "train.lrr=1"], "did you mean 'train.lr'"),
        (["report", "no/such"], "nothing to report"),
        (["report", ".", "--out", "report.pdf"], "ends in .html"),
        (["compare", "--corpus", "no/such/path"], "no/such/path"),
        (["compare", "no/such.toml"], "no/such.toml"),
        (["train", "no/such.toml", "--out", "x"], "no/such.toml"),
        (["train", "cpu-huge", "--out", "x"], "none of superpose's own: cpu-small, cpu-tiny"),
        (["recipes", "../cpu-tiny"], "choose one of cpu-small"),
        (["prepare", "python", "--out", "x"], "--tokenizer"),
        (["prepare", "python", "--out", "x", "--tokenizer", "bytes", "--weights", "1,2"], "expected 1 numbers"),
        (["prepare", "python", "--out", "x", "--tokenizer", "bytes", "--names", "a,b"], "expected 1 names"),
        (["prepare", "python", "--out", "x", "--tokenizer", "bytes", "--names", "a b"], "no name of a source"),
        (["prepare", "no/such", "--out", "x", "--tokenizer", "bytes"], "no/such"),
        (["prepare", "python", "--out", "x", "--tokenizer", "no/such"], "no/such"),
        (["tokenizer", "train", "no/such", "--vocab-size", "300", "--out", "x"], "no/such"),
        (["data", "verify", "no/such"], "no/such"),
    ],
)
def test_wrong_calls_are_one_sentence_and_exit_2(arguments, message, tmp_path, refused):
    assert message in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(corpus, tmp_path, refused):
    (tmp_path / "file").write_text("in the way")
    message = refused("train", "cpu-tiny", "--out", tmp_path / "file" / "run", f"--set=data.corpus={corpus}", *TINY)
    assert "check the path" in message


def test_too_small_a_corpus_for_the_batch(corpus, refused):
    assert "one step reads" in refused("compare", "--corpus", corpus, "--set", "train.batch_size=4000", *TINY[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there(refused):
    assert "train.device" in refused("compare", "--set", "train.device=cuda")
