import json

import pytest
from typer.testing import CliRunner

from superpose import cli
from superpose.compare import Comparison
from superpose.reproduce.experiments import EPOCHS, EXPERIMENTS
from superpose.reproduce.reproduction import Reproduction
from tests.conftest import suggested, trained

TINY = {
    "train.steps": 100,
    "train.batch_size": 4,
    "train.latents": 16,
    "train.warmup_steps": 2,
    "train.eval_every": 100,
    "train.precision": "float32",
    "train.threads": 1,
    "data.vocab_size": 300,
    "data.val_fraction": 0.1,
    "data.val_megabytes": 0.002,
    "model.config.hidden_size": 16,
    "model.config.intermediate_size": 32,
    "model.config.num_hidden_layers": 1,
    "model.config.num_attention_heads": 2,
}


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """Calls the command with its runs trained in this process."""
    for room in ("reproduce.reproduction", "compare.workflow"):
        monkeypatch.setattr(f"superpose.{room}.train_all", lambda runs, store, pool, *rest: trained(runs, store, pool))
    settings = [f"--set={name}={json.dumps(value)}" for name, value in TINY.items()]

    def call(*arguments):
        return CliRunner().invoke(cli.app, ["reproduce", *map(str, arguments), *settings, "--runs", str(tmp_path)])

    return call


def test_experiments_one_after_the_other(invoke, tmp_path):
    corpus = tmp_path / "short.jsonl"  # documents so short that text can be cut to size
    corpus.write_text("".join(json.dumps({"text": f"the {n} of {n * n % 997}."}) + "\n" for n in range(8000)))
    done = invoke("data-bound", "table2", "--corpus", corpus, "--seeds", "1", "--lrs", "1e-3,2e-3")
    assert done.exit_code == 0, done.output
    bound, table2 = Reproduction.load(tmp_path / "reproduce-tiny" / "reproduction.json")
    epochs = {arm.name: arm.epochs for arm in bound.arms}
    assert epochs["ordinary"] == pytest.approx(EPOCHS, rel=0.15)  # its tokenizer is trained on less text, too
    assert epochs["output"] == epochs["ordinary"] < epochs["full"]
    # The text of one experiment is not that of the next.
    assert all(arm.epochs < 1 for arm in table2.arms)
    assert bound.recipe.data.max_megabytes < table2.recipe.data.max_megabytes
    assert set(table2.rates) == {"ordinary", "tst"}
    assert {finding.verdict for finding in (*bound.findings, *table2.findings)} == {"undecided"}  # one seed
    assert suggested(done.output) == ["report", str(tmp_path / "reproduce-tiny")]
    for words in ("Data-bound", "reinit minus tst", "undecided"):
        assert words in done.output
        assert words in (tmp_path / "reproduce-tiny" / "summary.md").read_text()
    # Variants beside what is trained already.
    pool = tmp_path / "pool"
    done = invoke("table2", "--corpus", corpus, "--seeds", "1")
    before = set(pool.iterdir())
    done = invoke("table2", "--corpus", corpus, "--seeds", "1", "--variant", "power=superposition.weighting=power")
    assert done.exit_code == 0, done.output
    new = {run for run in pool.iterdir() if run.is_dir()} - before
    assert len(new) == 2  # ordinary training is there already
    beside = tmp_path / "reproduce-tiny-variants"
    assert "power ended" in Comparison.load(beside).verdict()
    assert {path.name for path in beside.glob("*seed1")} == {f"{arm}-100-seed1" for arm in ("ordinary", "tst", "power")}
    assert "Variants at 100 steps" in done.output


def test_a_wrong_variant_is_refused_before_any_work(refused, tmp_path):
    printed = refused("reproduce", "table2", "--variant", "tst=superposition.bag_size=2", "--runs", tmp_path)
    assert "--variant tst is the name of an arm" in printed
    assert not list(tmp_path.iterdir())


def test_it_names_its_experiments():
    listed = CliRunner().invoke(cli.app, ["reproduce", "--list"]).output
    assert all(name in listed for name in EXPERIMENTS)
