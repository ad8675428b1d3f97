"""Whole commands on a run, and the sentences they refuse with."""

import pytest
from typer.testing import CliRunner

from superpose import cli
from tests.conftest import suggested


def called(*arguments):
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_export_generate_import(run, corpus, tmp_path, monkeypatch):
    out, options = tmp_path / "out", ("the alpha", "--max-new-tokens", 3, "--seed", 5)
    said = called("export", run, out, "--license", "mit", "--language", "en", "--language", "de")
    assert said.startswith(f"{out}: 12,208 parameters of step 20; the card is README.md\n")
    assert called(*suggested(said), *options) == called("generate", run, *options)
    card = (out / "README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\nlibrary_name: transformers\nlanguage: ["en", "de"]\n')
    said = called("import", out, tmp_path / "on.toml")
    assert "16 latents" in said
    monkeypatch.chdir(tmp_path)
    small = ("--set=train.steps=2", "--set=train.warmup_steps=0", "--set=data.val_megabytes=0.02")
    called(*suggested(said), "--corpus", corpus, *small)
    assert called("generate", "runs/on", *options).startswith("the alpha")


def test_bags_are_said(run, tmp_path):
    said = called("export", run, tmp_path / "bags", "--checkpoint", 8, "--bags")
    assert said.endswith("It predicts bags of 4 tokens and cannot generate text; its card says so.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "none", "out"], "none is not a run"),
        (["export", "RUN", "RUN"], "is there already"),
        (["export", "RUN", "out", "--checkpoint", "8"], "--bags"),
        (["export", "RUN", "out", "--checkpoint", "7"], "predicts bags"),
        (["export", "RUN", "out", "--checkpoint", "0"], "has 20 steps"),
        (["export", "RUN", "out", "--bags"], "predicts the next token"),
        (["export", "RUN", "out", "--max-shard-size", "1"], "such as 5GB"),
        (["import", "none", "r.toml"], "no config.json"),
        (["import", "RUN", "r.toml"], "tokenizer"),
        (["import", "RUN", "r.json"], "ends in .toml"),
        (["import", "RUN", "r.toml", "--recipe", "none.toml"], "none.toml"),
        (["generate", "none"], "none is not a run"),
        (["runs", "list", "none"], "none is no directory"),
        (["runs", "none"], "none is no directory"),
        (["runs", "show", "none"], "none is not a run"),
        (["runs", "compare", "RUN"], "two runs or more"),
        (["runs", "remove", "RUN", "--yes"], "is not inside of runs"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, message, run, tmp_path, refused):
    assert message in refused(*(run if part == "RUN" else part for part in arguments))
    assert list(tmp_path.iterdir()) == []
    assert (run / "result.json").is_file()
