import json
import shutil

import pytest
import torch

from superpose.data.store import TokenStore
from superpose.errors import UserError
from superpose.files import file_sha256
from superpose.models.build import build_config, build_model
from superpose.train import run_directory as runs
from superpose.train.run_directory import claim
from tests.train.test_loop import changed

CPU = torch.device("cpu")


def test_choices_made_at_the_start_are_kept(recipe, store, tmp_path, monkeypatch):
    automatic = changed(recipe, "train", precision="auto")
    chosen = changed(recipe, "train", precision="bfloat16")
    monkeypatch.setattr(runs, "chosen_precision", lambda recipe, device: chosen)
    assert claim(tmp_path / "run", automatic, store, False, CPU).train.precision == "bfloat16"
    monkeypatch.setattr(runs, "chosen_precision", lambda recipe, device: pytest.fail("asked again"))
    assert claim(tmp_path / "run", automatic, store, True, CPU).train.precision == "bfloat16"
    with pytest.raises(UserError, match=r"another train\.precision"):
        claim(tmp_path / "run", recipe, store, True, CPU)


def test_a_run_may_go_on_elsewhere(recipe, store, tmp_path):
    """How it is computed and watched may change; what it computes may not."""
    claim(tmp_path / "run", recipe, store, False, CPU)
    elsewhere = changed(recipe, "train", threads=3, accumulate=2, log_every=7, keep_checkpoints=5, compile=True)
    elsewhere = changed(elsewhere, "parallel", strategy="ddp", timeout=9)
    assert claim(tmp_path / "run", elsewhere, store, True, CPU) == elsewhere
    for section, values in (("train", {"steps": 30}), ("superposition", {"ratio": 0.2}), ("model", {"config": {}})):
        with pytest.raises(UserError, match=f"another {section}"):
            claim(tmp_path / "run", changed(recipe, section, **values), store, True, CPU)


@pytest.mark.parametrize("left", ["store.json", ".config.json.123.tmp"])
def test_a_run_killed_at_its_very_start_can_be_started(recipe, store, tmp_path, left):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("{}")
    claim(tmp_path / "run", recipe, store, False, CPU)
    assert json.loads((tmp_path / "run" / "store.json").read_text())["fingerprint"] == store.fingerprint


def test_a_run_with_a_link_in_it_is_not_gone_on_with(recipe, store, tmp_path):
    """What is written to it would land elsewhere."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    claim(run, recipe, store, False, CPU)
    (run / "checkpoints").symlink_to(outside)
    with pytest.raises(UserError, match="checkpoints is a link"):
        claim(run, recipe, store, True, CPU)


def test_a_model_takes_along_no_file_but_the_tokenizers(recipe, store, tmp_path):
    """A store that somebody else made may hold a link to a file that is not to be published."""
    (tmp_path / "secret").write_text("secret")
    shutil.copytree(store.path, tmp_path / "store")
    copied = TokenStore.open(tmp_path / "store")
    config = build_config(recipe.model, store.vocab_size, 16, store.end_of_text)
    weights = {name: torch.zeros(tensor.shape) for name, tensor in build_model(config, "meta").state_dict().items()}
    (copied.tokenizer_path / "notes.json").symlink_to(tmp_path / "secret")
    runs.export_model(config, weights, copied, tmp_path / "model")
    assert not (tmp_path / "model" / "notes.json").exists()
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (
        store.tokenizer_path / "tokenizer.json"
    ).read_bytes()
    (copied.tokenizer_path / "config.json").write_text("{}")
    copied.manifest["sha256"]["tokenizer/config.json"] = file_sha256(copied.tokenizer_path / "config.json")
    runs.export_model(config, weights, copied, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llama"
    (copied.tokenizer_path / "tokenizer_config.json").unlink()
    (copied.tokenizer_path / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"tokenizer_config\.json was altered"):
        runs.export_model(config, weights, copied, tmp_path / "again")
    assert not (tmp_path / "again").exists()
