import json
import shutil

import pytest
import torch

from superpose.errors import UserError
from superpose.models.build import ModelArgs, build_config
from superpose.models.load import load_weights
from tests.conftest import make_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model as transformers writes it; its embedding has more rows than the tokenizer has entries."""
    model = make_model("qwen3", vocab_size=320)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(path)
    return model, path


def test_weights_to_go_on_with(saved):
    args = ModelArgs(init_from=str(saved[1]))
    config = build_config(args, 300, 64, 7)
    assert config.vocab_size == 320
    loaded = load_weights(args.init_from, config)
    for ours, theirs in zip(loaded.parameters(), saved[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_no_pickle_and_no_code_is_loaded(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit('run')")
    args = ModelArgs(init_from=str(tmp_path / "model"))
    load_weights(args.init_from, build_config(args, 300, 64, 7))
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no weights"):
        load_weights(args.init_from, build_config(args, 300, 64, 7))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 100), "cannot be loaded"),
        (lambda path: (path / "config.json").unlink(), "config.json cannot be read"),
        (lambda path: (path / "config.json").write_text("{}"), "no causal language model"),
        (lambda path: (path / "config.json").write_text('{"model_type": "qwen3", "vocab_size": 10}'), "tokenizer 300"),
    ],
)
def test_a_damaged_model_is_one_clear_sentence(saved, tmp_path, damage, message):
    shutil.copytree(saved[1], tmp_path / "model")
    damage(tmp_path / "model")
    args = ModelArgs(init_from=str(tmp_path / "model"))
    with pytest.raises(UserError, match=message):
        load_weights(args.init_from, build_config(args, 300, 64, 7))


def test_a_model_with_other_weights_is_refused(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "intermediate_size": 99}))
    args = ModelArgs(init_from=str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"does not hold all weights|cannot be loaded"):
        load_weights(args.init_from, build_config(args, 300, 64, 7))
